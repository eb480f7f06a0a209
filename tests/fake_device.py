"""A fake accelerator with real values. Its tensors say that they are on `fakegpu:0`, and compute on
the CPU. What a GPU would refuse fails with file and line: operands on two devices. What makes a GPU
wait is counted by line: values that Python reads, copies in both directions, and shapes that depend
on values. It says nothing about kernels, attention implementations, NCCL, autocast, memory or
speed.

To import it changes what torch says about accelerators, so it belongs in a process of its own.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers.pytorch_utils
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

import hf_distill

NAME = "fakegpu"
_PACKAGE = str(Path(hf_distill.__file__).parent)


class _Module(_DummyBackendModule):
    """What `torch.fakegpu` is: the little that Trainer and autocast ask of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def set_device(self, device: object) -> None:
        pass

    def device(self, device: object) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def synchronize(self, device: object = None) -> None:
        pass

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        torch.set_rng_state(state)

    def empty_cache(self) -> None:
        pass


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
DEVICE = torch.device(f"{NAME}:0")


@dataclass
class Traffic:
    """What was counted, by the line of the package that asked for it (or of a library).

    Attributes:
        waits: Values that came back to the host, and shapes that depend on values.
        copies: Copies to the device.
        operations: By name.
    """

    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        """Begin anew."""
        for counter in (self.waits, self.copies, self.operations):
            counter.clear()

    def of_package(self, what: str) -> dict[str, int]:
        """`waits` or `copies` that lines of this package asked for."""
        counter: Counter[str] = getattr(self, what)
        return {line: count for line, count in counter.items() if line.startswith("hf_distill/")}


TRAFFIC = Traffic()


def _line() -> str:
    """The innermost line of this package, else of any library but torch."""
    other = "?"
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_PACKAGE):
            return f"hf_distill{name.removeprefix(_PACKAGE)}:{frame.f_lineno}"
        library = name.rpartition("site-packages/")[2]
        if other == "?" and library != name and not library.startswith("torch/"):
            other = f"{library}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
    return other


class OnDevice(Tensor):
    """A tensor on the fake device; `held` has its values."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        own = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        own.held = held
        return own

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


_aten = torch.ops.aten
_COPIES = (_aten._to_copy.default, _aten.copy_.default)
_READ_BY_HOST = {
    _aten._local_scalar_dense.default, _aten.nonzero.default, _aten.equal.default,
    _aten.masked_select.default, _aten._unique2.default, _aten.unique_dim.default,
}  # fmt: skip
_INDEXED = {
    _aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default,
    _aten._index_put_impl_.default, _aten._unsafe_index.Tensor,
}  # fmt: skip


def _goes_to(kwargs: dict[str, Any]) -> str | None:
    device = kwargs.get("device")
    return None if device is None else torch.device(device).type


def _count_copy(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    if func is _aten.copy_.default:
        source, there = args[1], isinstance(args[0], OnDevice)
    else:
        source, to = args[0], _goes_to(kwargs)
        there = isinstance(source, OnDevice) if to is None else to == NAME
    if isinstance(source, OnDevice) and not there:
        TRAFFIC.waits[_line()] += 1
    if there and not isinstance(source, OnDevice):
        TRAFFIC.copies[_line()] += 1


def _check(func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
    """Count what waits, and refuse operands on two devices. A CPU scalar may stand beside others,
    and so may CPU indices, which are copied.
    """
    strangers = [x for x in tensors if not isinstance(x, OnDevice) and x.dim()]
    if func in _INDEXED:
        indices = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor)]
        for index in indices:
            if not isinstance(index, OnDevice):
                TRAFFIC.copies[_line()] += 1
            if index.dtype == torch.bool:
                TRAFFIC.waits[_line()] += 1
        strangers = [x for x in strangers if all(x is not index for index in indices)]
    if strangers:
        raise RuntimeError(
            f"{func}: expected all tensors on one device, but found {DEVICE} and cpu at {_line()}"
        )
    counted = func is _aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
    if func in _READ_BY_HOST or counted:
        TRAFFIC.waits[_line()] += 1


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, form = tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, Tensor)]
    on_device = any(isinstance(x, OnDevice) for x in tensors)
    to = _goes_to(kwargs)
    TRAFFIC.operations[str(func)] += 1
    if func in _COPIES:
        _count_copy(func, args, kwargs)
    elif on_device:
        _check(func, args, kwargs, tensors)
    if func is _aten.pin_memory.default:
        return args[0]
    held = [x.held if isinstance(x, OnDevice) else x for x in flat]
    on_cpu, kwargs_on_cpu = tree_unflatten(held, form)
    if to == NAME:
        kwargs_on_cpu["device"] = torch.device("cpu")
    result = func(*on_cpu, **kwargs_on_cpu)
    if kwargs.get("out") is not None:
        return kwargs["out"]
    changes_first = func._schema.is_mutable and func.__name__.partition(".")[0].endswith("_")
    if args and isinstance(args[0], Tensor) and changes_first:
        return args[0]
    if not (to == NAME if to is not None else on_device):
        return result
    return tree_map(
        lambda x: OnDevice(x) if isinstance(x, Tensor) and not isinstance(x, OnDevice) else x,
        result,
    )


def let_libraries_compare_memory() -> None:
    """Let safetensors and transformers ask where the values of a tensor are, which tells them what
    is stored twice: a wrapper has no memory of its own.
    """
    for module in (safetensors.torch, transformers.pytorch_utils):
        for name in ("storage_ptr", "storage_size"):
            own = vars(module).get(name)
            if own is not None:
                vars(module)[name] = lambda tensor, own=own: own(getattr(tensor, "held", tensor))


class FakeDevice(TorchDispatchMode):
    """Within the context, tensors can be put on `DEVICE`."""

    def __enter__(self) -> FakeDevice:
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self._before)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})
