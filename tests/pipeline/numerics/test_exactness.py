"""What a label loses, against sums over dense float64 vectors written out one by one."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.numerics import draw_counts, nucleus, sparsify
from pipeline.numerics.exactness import (
    dense_log_probs,
    exact_label,
    sigmoid_loss,
    softmax_losses,
)

C, K, T = 30, 5, 2.0
LOGITS = torch.randn(12, C, generator=torch.Generator().manual_seed(0)) * 4


def kl(p, q):
    """KL of two vectors of float64, term by term."""
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def noisy_label(ids, seed=1):
    """A label of these classes that is off by a random tenth of a nat, as a code would be."""
    dense = dense_log_probs(LOGITS, T)
    log_probs, log_tail = exact_label(dense, ids)
    generator = torch.Generator().manual_seed(seed)
    log_probs = log_probs + torch.randn(log_probs.shape, generator=generator) / 10
    log_tail = log_tail + torch.randn(log_tail.shape, generator=generator) / 10
    norm = torch.logaddexp(log_probs.logsumexp(1), log_tail)
    return (log_probs - norm[:, None]).float(), (log_tail - norm).float()


KEPT = {
    "top_k": sparsify(LOGITS, K, (T,)).ids,
    "top_p": nucleus(LOGITS, K, 0.8, (T,)).ids,
    "all": sparsify(LOGITS, C, (T,)).ids,
}


@pytest.mark.parametrize("kept", KEPT)
def test_every_divergence_is_the_dense_one(kept):
    """Uniform, bucket and drop equal KL of whole vectors; the mass outside is exact."""
    ids = KEPT[kept]
    log_probs, log_tail = noisy_label(ids)
    found = softmax_losses(dense_log_probs(LOGITS, T), ids, log_probs, log_tail)
    for row in range(len(ids)):
        p = (LOGITS[row].double() / T).softmax(0)
        own = ids[row][ids[row] >= 0].tolist()
        rest = [c for c in range(C) if c not in own]
        said = log_probs[row, : len(own)].double().exp()
        tail = float(log_tail[row].double().exp()) if rest else 0.0
        total = float(said.sum()) + tail
        q = torch.zeros(C, dtype=torch.float64)
        q[own] = said / total
        q[rest] = tail / total / max(len(rest), 1)
        outside = math.fsum(p[rest].tolist())
        assert found.outside[row].item() == pytest.approx(outside, abs=1e-12)
        assert found.uniform[row].item() == pytest.approx(kl(p.tolist(), q.tolist()), abs=1e-12)
        events = ([*p[own].tolist(), outside], [*q[own].tolist(), tail / total])
        assert found.bucket[row].item() == pytest.approx(kl(*events), abs=1e-12)
        renormalised = (said / said.sum()).tolist()
        assert found.drop[row].item() == pytest.approx(kl(renormalised, p[own].tolist()), abs=1e-12)


@pytest.mark.parametrize("kept", KEPT)
def test_truncation_and_code_add_up(kept):
    """Uniform = truncation + bucket for any label; exact values have no code to lose by."""
    ids, dense = KEPT[kept], dense_log_probs(LOGITS, T)
    exact = softmax_losses(dense, ids, *exact_label(dense, ids))
    coded = softmax_losses(dense, ids, *noisy_label(ids))
    torch.testing.assert_close(coded.uniform, exact.uniform + coded.bucket, rtol=0, atol=1e-12)
    assert exact.bucket.abs().max() < 1e-12
    torch.testing.assert_close(exact.drop, -(1 - exact.outside).log(), rtol=0, atol=1e-12)
    assert (coded.bucket > 0).all()
    if kept == "all":
        assert exact.uniform.abs().max() < 1e-12


def test_a_label_without_a_tail_is_infinitely_far_and_its_noise_is_not():
    """Draws give 0 to classes with mass: only KL(label || dense) is a number."""
    uniforms = torch.rand(12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ids, counts = draw_counts(LOGITS, uniforms, T)
    log_probs = (counts.double() / 8).log().float()
    none = torch.full((12,), -torch.inf)
    found = softmax_losses(dense_log_probs(LOGITS, T), ids, log_probs, none)
    assert torch.isposinf(found.uniform).all()
    assert torch.isposinf(found.bucket).all()
    p = (LOGITS.double() / T).softmax(1)
    for row in range(12):
        own = ids[row][ids[row] >= 0]
        shares = (counts[row, : len(own)].double() / 8).tolist()
        assert found.drop[row].item() == pytest.approx(kl(shares, p[row, own].tolist()), abs=1e-6)


def test_sigmoid_labels_are_compared_class_by_class():
    """Both parts equal sums of binary divergences, also where a probability is almost 1."""
    logits = LOGITS.clone()
    logits[0, 3] = 40.0
    ids = sparsify(logits, K, (T,), "sigmoid").ids
    said = torch.nn.functional.logsigmoid(logits.gather(1, ids).double() / T + 0.05).float()
    others, kept = sigmoid_loss(logits, ids, said, T)
    for row in range(12):
        p = (logits[row].double() / T).sigmoid().tolist()
        left_out = [c for c in range(C) if c not in ids[row].tolist()]
        expected = -math.fsum(math.log1p(-p[c]) for c in left_out)
        assert others[row].item() == pytest.approx(expected, rel=1e-9)
        terms = []
        for place, c in enumerate(ids[row].tolist()):
            on = math.exp(said[row, place].item())
            off = -math.expm1(said[row, place].item())
            score = logits[row, c].item() / T
            terms.append(on * (math.log(on) + math.log1p(math.exp(-score))))
            if off > 0:
                terms.append(off * (math.log(off) + score + math.log1p(math.exp(-score))))
        assert kept[row].item() == pytest.approx(math.fsum(terms), abs=1e-9)
