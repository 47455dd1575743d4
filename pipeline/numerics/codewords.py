"""A dictionary of codewords: vectors as sums of the few that they are most like.

In: the code of Sparse Representation Matching (Tran, Gabbouj, Iosifidis 2021, arXiv 2103.17012)
and the fit of its dictionary. Of a vector x, codewords c_1 .. c_M and one number b,

    k_j = sigmoid(c_j x + b), kept for the `kept` largest and 0 for the others
    x^ = sum over j of k_j c_j

and c, b are those of the least mean squared error between x and x^. Left out: whose vectors they
are, and what a student learns of their codes.

The error has no gradient in a codeword that no vector keeps, so the start decides how many are
ever used: codewords start as vectors of the sample, all of one length, so that each is kept by
those of its own direction, and the bias where the sigmoids are not yet saturated.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Vectors of a step of Adam, and its rate until a share of the steps. It falls where the paper's
# does, after 10 and 70 of 100 epochs, from ten times as much, since there are fewer steps.
_BATCH = 512
_RATES = ((0.1, 1e-2), (0.7, 1e-3), (1.0, 1e-4))


class Dictionary(NamedTuple):
    """Codewords and their one bias.

    Attributes:
        codewords: (M, D).
        bias: ().
    """

    codewords: Tensor
    bias: Tensor


class SparseCode(NamedTuple):
    """Which codewords vectors keep, most alike first.

    Attributes:
        ids: (..., kept) int64.
        values: (..., kept) their similarities, within 0 and 1.
    """

    ids: Tensor
    values: Tensor


def similarity_logits(vectors: Tensor, dictionary: Dictionary) -> Tensor:
    """Return (..., M) similarities of (..., D) vectors before the sigmoid."""
    return vectors @ dictionary.codewords.T + dictionary.bias


def sparse_code(logits: Tensor, kept: int) -> SparseCode:
    """Return the code of (..., M) similarities before the sigmoid."""
    # Of the logits: sigmoids near 1 are equal long before these are.
    found = logits.topk(kept, dim=-1)
    return SparseCode(found.indices, found.values.sigmoid())


def dense_code(code: SparseCode, codewords: int) -> Tensor:
    """Return (..., M) similarities, 0 where a codeword is not kept."""
    shape = (*code.ids.shape[:-1], codewords)
    return code.values.new_zeros(shape).scatter(-1, code.ids, code.values)


def reconstruct(vectors: Tensor, dictionary: Dictionary, kept: int) -> Tensor:
    """Return (..., D) what the codewords kept make of (..., D) vectors."""
    code = sparse_code(similarity_logits(vectors, dictionary), kept)
    return dense_code(code, len(dictionary.codewords)) @ dictionary.codewords


def fit_dictionary(
    vectors: Tensor, codewords: int, kept: int, *, steps: int, seed: int
) -> Dictionary:
    """Return the dictionary of the least mean squared error, as far as Adam finds it.

    Args:
        vectors: (n, D) float32 in random order, n > 0, of a mean square of 1.
        codewords: M.
        kept: Codewords that a vector keeps.
        steps: Of Adam, each on a mini-batch.
        seed: Of the mini-batches.
    """
    generator = torch.Generator().manual_seed(seed)
    start = _start(vectors, codewords, kept)
    parameters = [one.clone().requires_grad_() for one in start]
    fitted = Dictionary(*parameters)
    optimizer = torch.optim.Adam(parameters, lr=_RATES[0][1])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = next(rate for end, rate in _RATES if step < end * steps)
        batch = vectors[torch.randint(len(vectors), (_BATCH,), generator=generator)]
        loss = functional.mse_loss(reconstruct(batch, fitted, kept), batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Dictionary(*(one.detach() for one in parameters))


def _start(vectors: Tensor, codewords: int, kept: int) -> Dictionary:
    """Return codewords of which `kept` are as long as a vector, most alike at about 1/2."""
    some = vectors[torch.arange(codewords) % len(vectors)]
    length = some.shape[1] ** 0.5 / kept
    found = functional.normalize(some, dim=1) * length
    most_alike = (vectors[:_BATCH] @ found.T).amax(dim=1).mean()
    return Dictionary(found, -most_alike)
