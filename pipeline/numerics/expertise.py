"""Which of several teachers knows an image, told without labels by how sure each of them is.

In: the entropy of what a teacher says of an image over its views, and shares of the teachers from
the entropies of all. Left out: what is done with the shares.

A specialist answers every image, also those of classes that it was never shown. There it is less
sure, and its answer changes with the view: the entropy of the mean answer over the views of an
image, which is the mean entropy plus how much the views disagree, tells more than one view. How
sure a teacher is when it knows differs among teachers, e.g. with how long they were trained, so
the entropy H_t(x) counts as a multiple of that teacher's own mean over all images:

    w_t(x) = softmax over t of -sharpness * H_t(x) / mean_x H_t

No scale of a teacher's entropies changes that. On six specialists of glyphs, with sharpness 5, the
teacher of the image's script has the largest share for 76 % of the images (one view: 62 %), and
its mean log share is -0.66. Latent-class models fitted by expectation maximisation, with the
script as the class, drifted from such a start to something else that images have in common.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.numerics.soft_label_batch import SoftLabelBatch
from pipeline.numerics.supports import SupportTable


def mean_answer_entropy(
    answers: Sequence[SoftLabelBatch], supports: SupportTable, *, temperature: float = 1.0
) -> Tensor:
    """Return the entropy of each teacher's mean answer over the views of B images.

    What counts of an answer is its stored classes, at temperature 1, renormalised.

    Args:
        answers: One batch a view, of the same B images and teachers.
        supports: The teachers' supports.
        temperature: At which the answers were decoded.

    Returns:
        (T, B) float32 in nats; 0 where there is no teacher.
    """
    teachers, images, _ = answers[0].ids.shape
    found = torch.zeros(teachers, images)
    for slot in range(teachers):
        rows = supports.rows(answers[0].teacher[slot])
        # A place more, for classes that are absent.
        mean = torch.zeros(images, rows.shape[1] + 1)
        for answer in answers:
            ids = answer.ids[slot]
            places = torch.searchsorted(rows, ids.clamp(min=0).contiguous())
            log_probs = temperature * answer.log_probs[slot].float()
            probs = log_probs.masked_fill(ids < 0, -torch.inf).softmax(dim=1).nan_to_num(0.0)
            places = places.masked_fill(ids < 0, rows.shape[1])
            mean.scatter_add_(1, places, probs / len(answers))
        found[slot] = torch.special.entr(mean).sum(dim=1)
    return found


def expertise(entropy: Tensor, sharpness: float) -> Tensor:
    """Return the share of each teacher in each image, of sum 1 over the teachers.

    Args:
        entropy: (T, N) of teacher t on image n, in any unit of the teacher's own.
        sharpness: At least 0, where all teachers are alike.

    Returns:
        (T, N) float32.
    """
    mean = entropy.double().mean(dim=1, keepdim=True).clamp(min=1e-12)
    return (-sharpness * entropy / mean).softmax(dim=0).float()
