"""Training a transformer on a CPU without padding: the texts of a batch one after another, as one
long text.

Matrix products, norms and activations then see all tokens at once, and nothing but tokens; only
attention knows where a text ends. Where bfloat16 has matrix units, products are a tenth of a step
that pads: the rest is many small operations, padding, and drawing dropout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "hf_distill_packed"
"""The attention of transformers that is registered here. On padded texts it is PyTorch's own."""

PACKABLE = {
    "bert": False,
    "electra": False,
    "roberta": True,
    "xlm-roberta": True,
    "camembert": True,
    "distilbert": False,
}
"""Backbones (`config.model_type`) whose tokens meet in full attention only, and that take positions
as an argument; whether these begin after the padding token's number."""

PADDING = 0.3
"""Texts attend side by side if the shortest of them lacks no more than this share of the longest
one's tokens: attention is little of the work, and more buckets are more operations."""

_BUCKET_TOKENS = 4096
"""At most about as many tokens attend at a time."""


@dataclass(frozen=True)
class Bucket:
    """Consecutive texts of similar length side by side: `texts` x `length` of the padded tokens,
    from `start` on. `empty` (texts, 1, 1, length) bool is True where a text has no token; None
    where all are equally long.
    """

    start: int
    texts: int
    length: int
    empty: Tensor | None

    def cut(self, padded: Tensor) -> Tensor:
        """This bucket's part of padded tokens (S, H, d), as a view (texts, length, H, d)."""
        return padded[self.start : self.start + self.texts * self.length].view(
            self.texts, self.length, *padded.shape[1:]
        )

    def heads(self, padded: Tensor) -> Tensor:
        """The same as (texts, H, length, d), contiguous: what matrix products want."""
        return self.cut(padded).transpose(1, 2).contiguous()


@dataclass(frozen=True)
class Packing:
    """How packed tokens fall into texts.

    Attributes:
        buckets: Of all texts, in order.
        rows: (S,) int64, the packed token at each padded place; a text's first one where it has
            none.
        places: (T,) int64, the padded place of each packed token.
    """

    buckets: tuple[Bucket, ...]
    rows: Tensor
    places: Tensor


def packing_of(lengths: list[int]) -> Packing:
    """Cut packed texts of ascending `lengths` into buckets."""
    buckets: list[Bucket] = []
    rows: list[Tensor] = []
    places: list[Tensor] = []
    first, token, place = 0, 0, 0
    for text in range(1, len(lengths) + 1):
        if (
            text < len(lengths)
            and lengths[first] >= (1 - PADDING) * lengths[text]
            and lengths[text] * (text - first) < _BUCKET_TOKENS
        ):
            continue
        own = torch.tensor(lengths[first:text])
        longest = int(own[-1])
        there = torch.arange(longest) < own[:, None]
        firsts = token + own.cumsum(0) - own
        rows.append(
            torch.where(there, firsts[:, None] + torch.arange(longest), firsts[:, None]).flatten()
        )
        places.append(place + there.flatten().nonzero().flatten())
        buckets.append(
            Bucket(
                place,
                text - first,
                longest,
                None if bool(there.all()) else ~there[:, None, None, :],
            )
        )
        first, token, place = text, token + int(own.sum()), place + there.numel()
    return Packing(tuple(buckets), torch.cat(rows), torch.cat(places))


def can_pack(model: BaseModel) -> bool:
    """Whether the texts of a batch can stand one after another: with a backbone in `PACKABLE` that
    looks both ways.
    """
    first = model[0]
    if not isinstance(first, Transformer) or first.backend != "torch":
        return False
    config = _backbone(model).config
    return config.model_type in PACKABLE and not getattr(config, "is_decoder", False)


def _backbone(model: BaseModel) -> PreTrainedModel:
    backbone: PreTrainedModel = model[0].auto_model  # type: ignore[assignment]  # a module's attributes have no types
    return backbone


def pack(features: dict[str, Any], first_position: int) -> tuple[dict[str, Any], Tensor]:
    """Padded model inputs without their padding, as sentence-transformers' own modules read such:
    the texts in order of length.

    Args:
        features: `input_ids` and `attention_mask`, (n, length).
        first_position: The position of a text's first token (`first_position_of`).

    Returns:
        `input_ids`, `position_ids`, `seq_idx` (1, T), `cu_seq_lens_q` (n + 1,) int32 and `packing`;
        and (n,) int64, which text comes where.
    """
    mask = features["attention_mask"].bool()
    order = mask.sum(dim=1).argsort(stable=True)
    mask, ids = mask[order], features["input_ids"][order]
    lengths = mask.sum(dim=1)
    ends = lengths.cumsum(0)
    text = torch.arange(len(order)).repeat_interleave(lengths)
    positions = torch.arange(int(ends[-1])) - (ends - lengths)[text]
    packed = {
        "input_ids": ids[mask][None],
        "position_ids": (positions + first_position)[None],
        "seq_idx": text[None],
        "cu_seq_lens_q": torch.cat([ends.new_zeros(1), ends]).to(torch.int32),
        "packing": packing_of(lengths.tolist()),
    }
    return packed, order


def first_position_of(model: BaseModel) -> int:
    """The position of a text's first token: 0, or what follows the padding token's number."""
    config = _backbone(model).config
    return int(config.pad_token_id) + 1 if PACKABLE[config.model_type] else 0


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _keep_mask(values: Tensor, probability: float) -> Tensor:
    """Integers as wide as `values`: all bits set where a number is kept, with probability 1 -
    `probability` to 1/65,536, else none.

    Each takes a quarter of a random number, where PyTorch's dropout takes a whole.
    """
    count = values.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(
        torch.iinfo(torch.int64).min, None
    )
    keep = bits.view(torch.int16)[:count] >= round(probability * 65536) - 32768
    return keep.view(values.shape).to(_INTEGERS[values.element_size()]).neg_()


def _drop(values: Tensor, mask: Tensor) -> Tensor:
    """`values` with 0 where `mask` (`_keep_mask`) has no bits."""
    return (values.view(mask.dtype) & mask).view(values.dtype)


class _Dropout(torch.autograd.Function):
    """Dropout by bits: a kept number's bits stay, a dropped one's become 0."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, probability: float) -> Tensor:
        mask = _keep_mask(values, probability)
        ctx.save_for_backward(mask)  # (and not by an attribute: GradCache then need not hold it)
        ctx.scale = 1.0 / (1.0 - probability)
        return _drop(values, mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return _drop(gradient.contiguous(), mask).mul_(ctx.scale), None


class FastDropout(nn.Dropout):
    """`nn.Dropout` at about a quarter of its cost on a CPU."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the parent's name
        """`input` with its numbers dropped, in training."""
        if not self.training or not 0 < self.p < 1 or input.device.type != "cpu":
            return super().forward(input)
        dropped: Tensor = _Dropout.apply(input.contiguous(), self.p)  # type: ignore[no-untyped-call]  # torch gives `apply` no types
        return dropped


class _Attention(torch.autograd.Function):
    """Softmax attention of packed texts by plain matrix products, bucket by bucket; (T, H, d) each,
    and the result.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        packing: Packing,
        scale: float,
        dropout: float,
    ) -> Tensor:
        padded = [states.index_select(0, packing.rows) for states in (query, key, value)]
        padded[0].mul_(scale)
        out = torch.empty_like(padded[2])
        saved: list[Tensor] = []
        for bucket in packing.buckets:
            q, k, v = (bucket.heads(states) for states in padded)
            scores = q @ k.transpose(-1, -2)
            if bucket.empty is not None:
                scores.masked_fill_(bucket.empty, -torch.inf)
            shares = scores.softmax(
                dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)
            ).to(q.dtype)
            saved += [q, k, v, shares]
            if dropout:
                saved.append(_keep_mask(shares, dropout))
                shares = _drop(shares, saved[-1])
            bucket.cut(out).copy_((shares @ v).transpose(1, 2))
        ctx.packing, ctx.scale, ctx.dropout = packing, scale, dropout
        ctx.save_for_backward(*saved)
        packed = out.index_select(0, packing.places)
        return packed.mul_(1.0 / (1.0 - dropout)) if dropout else packed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        packing: Packing = ctx.packing
        of_out = gradient.new_zeros(len(packing.rows), *gradient.shape[1:]).index_copy_(
            0, packing.places, gradient
        )
        if ctx.dropout:
            of_out.mul_(1.0 / (1.0 - ctx.dropout))
        of_query, of_key, of_value = (torch.empty_like(of_out) for _ in range(3))
        saved = iter(ctx.saved_tensors)
        for bucket in packing.buckets:
            q, k, v, shares = (next(saved) for _ in range(4))
            own = bucket.heads(of_out)
            of_shares, dropped = own @ v.transpose(-1, -2), shares
            if ctx.dropout:
                mask = next(saved)
                of_shares, dropped = _drop(of_shares, mask), _drop(shares, mask)
            of_scores = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype)
            bucket.cut(of_value).copy_((dropped.transpose(-1, -2) @ own).transpose(1, 2))
            bucket.cut(of_query).copy_((of_scores @ k).transpose(1, 2))
            bucket.cut(of_key).copy_((of_scores.transpose(-1, -2) @ q).transpose(1, 2))
        of_query.mul_(ctx.scale)
        return (
            *(states.index_select(0, packing.places) for states in (of_query, of_key, of_value)),
            None,
            None,
            None,
        )


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, packing: Packing | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention as transformers calls it: (1, H, T, d) each, the result (1, T, H, d)."""
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    tokens = [states[0].transpose(0, 1) for states in (query, key, value)]
    with torch.autocast(device_type="cpu", enabled=False):
        out: Tensor = _Attention.apply(
            *tokens, packing, scaling or query.shape[-1] ** -0.5, dropout
        )  # type: ignore[no-untyped-call]  # the same
    return out[None], None


AttentionInterface.register(PACKED, _attend)
AttentionMaskInterface.register(PACKED, sdpa_mask)


def prepare_to_pack(model: BaseModel) -> None:
    """Let the backbone attend to packed texts, and its dropout cost little, in place. Padded texts
    are encoded as before.
    """
    backbone = _backbone(model)
    backbone.set_attn_implementation(PACKED)
    for module in backbone.modules():
        if type(module) is nn.Dropout:
            module.__class__ = FastDropout
