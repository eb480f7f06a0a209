"""Training a transformer on a CPU without padding: the texts of a batch follow one another, as one
long text.

Matrix products, norms and activations then see all tokens at once, and nothing but tokens. Only
attention knows where a text ends. On hardware with matrix units for bfloat16, a step with padding
spends a tenth of its time on products; many small operations, padding and drawing dropout take the
rest.

`Packer.of(model)` says how a model's texts are packed, and `fast_on_cpu(model)` lets it read them
for a while. The model is unchanged afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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
"""The name of the attention of packed texts among those of transformers. On padded texts it is
PyTorch's own.
"""

PACKABLE = {
    "bert": False,
    "electra": False,
    "roberta": True,
    "xlm-roberta": True,
    "camembert": True,
    "distilbert": False,
}
"""Backbones (`config.model_type`) whose tokens interact in full attention only, and that take
positions as an argument. The value says whether positions begin after the padding token's number.
"""

PADDING = 0.3
"""Texts share a bucket if the shortest of them lacks no more than this share of the longest one's
tokens. Attention is a small part of the work, and more buckets mean more operations.
"""

_BUCKET_TOKENS = 4096
"""About the most tokens in a bucket."""


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
        """The same as (texts, H, length, d), contiguous, as matrix products need it."""
        return self.cut(padded).transpose(1, 2).contiguous()


@dataclass(frozen=True)
class Packing:
    """How packed tokens belong to texts.

    Attributes:
        buckets: The buckets of all texts, in order.
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


def _backbone(model: BaseModel) -> PreTrainedModel | None:
    """The transformer of a model that starts with one in PyTorch, else None."""
    first = model[0]
    if not isinstance(first, Transformer) or first.backend != "torch":
        return None
    backbone: PreTrainedModel = first.auto_model
    return backbone


@dataclass(frozen=True)
class Packer:
    """How a model's texts are packed. `first_position` is the position of a text's first token."""

    first_position: int

    @classmethod
    def of(cls, model: BaseModel) -> Packer | None:
        """The packer of a model whose backbone is in `PACKABLE` and looks both ways, else None."""
        backbone = _backbone(model)
        if backbone is None:
            return None
        config = backbone.config
        if config.model_type not in PACKABLE or getattr(config, "is_decoder", False):
            return None
        return cls(int(config.pad_token_id) + 1 if PACKABLE[config.model_type] else 0)

    def pack(self, features: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """Padded model inputs without their padding, in the form that the modules of
        sentence-transformers read. The texts are put in order of length.

        Args:
            features: `input_ids` and `attention_mask`, (n, length).

        Returns:
            `input_ids`, `position_ids`, `seq_idx` (1, T), `cu_seq_lens_q` (n + 1,) int32 and
            `packing`; and (n,) int64, the place of each text.
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
            "position_ids": (positions + self.first_position)[None],
            "seq_idx": text[None],
            "cu_seq_lens_q": torch.cat([ends.new_zeros(1), ends]).to(torch.int32),
            "packing": packing_of(lengths.tolist()),
        }
        return packed, order


@contextlib.contextmanager
def fast_on_cpu(model: BaseModel) -> Iterator[None]:
    """Within the context, the model's backbone trains on a CPU as fast as it can, and reads packed
    texts if it has a `Packer`. Afterwards its modules and its configuration are what they were.

    A backbone that is not packed gets attention by plain matrix products. In bfloat16 the backward
    pass of PyTorch's fused attention takes half of a step on a CPU. In float32 both kinds take
    about the same time.
    """
    backbone = _backbone(model)
    packs = Packer.of(model) is not None
    if backbone is None or backbone.config._attn_implementation == (PACKED if packs else "eager"):
        yield  # nothing to change, or opened already
        return
    before = backbone.config._attn_implementation
    AttentionInterface.register(PACKED, _attend)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
    backbone.set_attn_implementation(PACKED if packs else "eager")
    try:
        with _fast_dropout(backbone) if packs else contextlib.nullcontext():
            yield
    finally:
        backbone.set_attn_implementation(before)


@contextlib.contextmanager
def _fast_dropout(backbone: nn.Module) -> Iterator[None]:
    """Within the context, a `FastDropout` replaces every `nn.Dropout`."""
    places = [
        (parent, name, child)
        for parent in backbone.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Dropout
    ]
    for parent, name, child in places:
        setattr(parent, name, FastDropout(child.p, child.inplace).train(child.training))
    try:
        yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child.train(getattr(parent, name).training))


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _keep_mask(values: Tensor, probability: float) -> Tensor:
    """Integers as wide as `values`: all bits set where a number is kept, with probability 1 -
    `probability` to 1/65,536, else none.

    Each uses a quarter of a random number, where PyTorch's dropout uses a whole one.
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
        dropped: Tensor = _Dropout.apply(input.contiguous(), self.p)  # type: ignore[no-untyped-call]  # untyped
        return dropped


@dataclass(frozen=True)
class _Form:
    """How packed tokens attend: `scale` is the factor of the scores before the softmax."""

    packing: Packing
    scale: float
    dropout: float


class _Attention(torch.autograd.Function):
    """Softmax attention of packed texts by plain matrix products, bucket by bucket. Query, key,
    value and the result are (T, H, d).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, form: _Form) -> Tensor:
        packing, scale, dropout = form.packing, form.scale, form.dropout
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
        ctx.form = form
        ctx.save_for_backward(*saved)
        packed = out.index_select(0, packing.places)
        return packed.mul_(1.0 / (1.0 - dropout)) if dropout else packed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        form: _Form = ctx.form
        packing = form.packing
        of_out = gradient.new_zeros(len(packing.rows), *gradient.shape[1:]).index_copy_(
            0, packing.places, gradient
        )
        if form.dropout:
            of_out.mul_(1.0 / (1.0 - form.dropout))
        of_query, of_key, of_value = (torch.empty_like(of_out) for _ in range(3))
        saved = iter(ctx.saved_tensors)
        for bucket in packing.buckets:
            q, k, v, shares = (next(saved) for _ in range(4))
            own = bucket.heads(of_out)
            of_shares, dropped = own @ v.transpose(-1, -2), shares
            if form.dropout:
                mask = next(saved)
                of_shares, dropped = _drop(of_shares, mask), _drop(shares, mask)
            of_scores = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype)
            bucket.cut(of_value).copy_((dropped.transpose(-1, -2) @ own).transpose(1, 2))
            bucket.cut(of_query).copy_((of_scores @ k).transpose(1, 2))
            bucket.cut(of_key).copy_((of_scores.transpose(-1, -2) @ q).transpose(1, 2))
        of_query.mul_(form.scale)
        gradients = (of_query, of_key, of_value)
        return (*(states.index_select(0, packing.places) for states in gradients), None)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: (1, H, T, d) each, the result (1, T, H, d)."""
    packing = rest.pop("packing", None)
    if packing is None:
        padded: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **rest
        )
        return padded
    scale = rest.get("scaling") or query.shape[-1] ** -0.5
    form = _Form(packing, scale, rest.get("dropout", 0.0))
    tokens = [states[0].transpose(0, 1) for states in (query, key, value)]
    with torch.autocast(device_type="cpu", enabled=False):
        out: Tensor = _Attention.apply(*tokens, form)  # type: ignore[no-untyped-call]  # the same
    return out[None], None
