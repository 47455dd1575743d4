"""Sparse losses of several teachers whose shares differ from row to row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.numerics import SoftLabelBatch, SupportTable, factorised_kl, sparse_kl

C, B, K = 11, 4, 3
SUPPORTS = (torch.arange(4), torch.arange(4, 9), torch.tensor([9, 10]))
TABLE = SupportTable.from_supports(SUPPORTS, C)


def soft_labels() -> tuple[SoftLabelBatch, Tensor]:
    """Answers of all three teachers to each row, and the (T, B, C) dense ones."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.zeros(3, B, C, dtype=torch.float64)
    ids = torch.full((3, B, K), -1)
    log_probs = torch.full((3, B, K), -torch.inf, dtype=torch.float64)
    for t, support in enumerate(SUPPORTS):
        logits = torch.randn(B, len(support), generator=generator, dtype=torch.float64)
        top = logits.log_softmax(dim=1).topk(min(K, len(support)), dim=1)
        ids[t, :, : top.indices.shape[1]] = support[top.indices]
        log_probs[t, :, : top.indices.shape[1]] = top.values
        rest = (1 - top.values.exp().sum(dim=1, keepdim=True)).clamp(min=0)
        spread = rest / max(len(support) - K, 1)
        inside = spread.expand(-1, len(support)).scatter(1, top.indices, top.values.exp())
        dense[t][:, support] = inside
    tail = (1 - log_probs.exp().sum(dim=2)).clamp(min=0).log()
    tail = tail.masked_fill(tail < -30, -torch.inf)
    teacher = torch.arange(3)[:, None].expand(-1, B)
    return SoftLabelBatch(ids=ids, log_probs=log_probs, log_tail=tail, teacher=teacher), dense


def student() -> tuple[Tensor, Tensor]:
    """Logits that want a gradient, and shares of the teachers."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(B, C, generator=generator, dtype=torch.float64).requires_grad_()
    return logits, torch.rand(3, B, generator=generator, dtype=torch.float64).softmax(dim=0)


def test_two_parts_are_the_divergence_from_the_mixture() -> None:
    """For disjoint supports both parts sum to KL(sum_t w_t p_t || student) + entropy of w."""
    soft, dense = soft_labels()
    logits, shares = student()
    log_mass, divergence = factorised_kl(logits, soft, TABLE, shares=shares)
    mixture = (shares.unsqueeze(2) * dense).sum(dim=0)
    wanted = (mixture * (mixture.clamp(min=1e-300).log() - logits.log_softmax(dim=1))).sum(dim=1)
    entropy = torch.special.entr(shares).sum(dim=0)
    torch.testing.assert_close(divergence - log_mass, wanted + entropy, atol=1e-7, rtol=1e-6)
    (found,) = torch.autograd.grad((divergence - log_mass).sum(), logits)
    torch.testing.assert_close(found, logits.softmax(dim=1) - mixture, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("tail", ["uniform", "bucket", "drop"])
def test_one_teacher_with_all_the_share_is_that_teacher(tail: str) -> None:
    """With a share of 1 the loss is that of a batch with this teacher alone."""
    soft, _ = soft_labels()
    logits, _ = student()
    shares = torch.zeros(3, B).index_fill(0, torch.tensor([1]), 1.0)
    alone = SoftLabelBatch(
        ids=soft.ids[1:2],
        log_probs=soft.log_probs[1:2],
        log_tail=soft.log_tail[1:2],
        teacher=soft.teacher[1:2],
    )
    for found, wanted in zip(
        factorised_kl(logits, soft, TABLE, temperature=2.0, tail=tail, shares=shares),
        factorised_kl(logits, alone, TABLE, temperature=2.0, tail=tail),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def test_equal_shares_are_the_mean() -> None:
    """1/T each gives what no shares give."""
    soft, _ = soft_labels()
    logits, _ = student()
    shares = torch.full((3, B), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(
        sparse_kl(logits, soft, TABLE, over="support", shares=shares),
        sparse_kl(logits, soft, TABLE, over="support"),
    )
