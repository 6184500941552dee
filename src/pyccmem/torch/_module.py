# SPDX-License-Identifier: Apache-2.0
"""Encrypts and decrypts whole models: the chosen parameters and buffers become ciphertext."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from .. import errors
from ..arena import Arena
from ..binding import DEFAULT_CIPHER
from ..keys import Key
from ..safetensors._progress import Progress, check_progress, reporting
from ._plain_memory import Mappings, apart, extent
from ._quantize import Formats, is_torchao, parts_of, quantized
from ._report import beside, hidden
from ._results import wipes
from ._tensor import EncryptedTensor, check_encryptable, opened, real
from ._threads import own_threads

__all__ = ["decrypt_module", "encrypt_module", "places", "set_activations"]

Choice = Iterable[str] | str | Callable[[str, Tensor], object] | None


class _Place(NamedTuple):
    """A place in a model that holds a parameter or buffer."""

    module: nn.Module
    name: str
    full_name: str
    tensor: Tensor
    is_parameter: bool


def places(model: nn.Module) -> Iterator[_Place]:
    """Yields every place that holds a tensor; a shared tensor as often as it occurs."""
    for prefix, module in model.named_modules(remove_duplicate=True):
        start = f"{prefix}." if prefix else ""
        for named, is_parameter in ((module._parameters, True), (module._buffers, False)):
            for name, tensor in list(named.items()):
                if tensor is not None:
                    yield _Place(module, name, start + name, tensor, is_parameter)


def _predicate(name: str, choice: Choice) -> Callable[[str, Tensor], object]:
    if callable(choice):
        return choice
    patterns = [choice] if isinstance(choice, str) else list(choice or ())
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise errors.ArgumentTypeError(
                f"{name} must hold patterns of names, or be a function of name and tensor, and "
                f"{type(pattern).__name__} is neither."
            )
    return lambda full_name, _: any(fnmatch.fnmatchcase(full_name, p) for p in patterns)


def _identity(tensor: Tensor) -> Any:
    """Returns a value that is equal for tensors that are the same, or that read the same memory in
    the same way."""
    if (
        isinstance(tensor, EncryptedTensor)
        or is_torchao(tensor)
        or tensor.device.type != "cpu"
        or not tensor.numel()
    ):
        return id(tensor)
    return (
        tensor.data_ptr(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
        tensor.is_conj(),
        tensor.is_neg(),
    )


class _Group:
    """A plain tensor of a model with all places where it occurs, and later the encrypted one for
    them."""

    def __init__(self, place: _Place) -> None:
        self.tensor: Tensor | None = place.tensor
        self.name = place.full_name
        self.nbytes = place.tensor.nbytes
        self.format: str | None = None
        self.places: list[tuple[nn.Module, str, bool]] = []
        self.encrypted: EncryptedTensor | None = None
        self.parameter: nn.Parameter | None = None

    def add(self, place: _Place, formats: Formats) -> None:
        self.places.append((place.module, place.name, place.is_parameter))
        if place.is_parameter and self.format is None:
            self.format = formats.of(place.full_name, place.module, place.name, place.tensor)

    def encrypt(self, key: Key, arena: Arena, activations: str) -> None:
        """Makes the encrypted tensor. The model still has the plain one."""
        assert self.tensor is not None
        if self.format is not None or is_torchao(self.tensor):
            new = quantized(
                self.tensor,
                self.format,
                key=key,
                arena=arena,
                name=self.name,
                wipe_results=wipes(activations),
            )
        else:
            new = EncryptedTensor.from_tensor(
                self.tensor, key=key, name=self.name, arena=arena, activations=activations
            )
        if any(is_parameter for _, _, is_parameter in self.places):
            self.parameter = nn.Parameter(new, requires_grad=False)
        self.encrypted = new

    def put(self) -> None:
        """Puts the encrypted tensor into all places of the plain one. May be repeated."""
        for module, name, is_parameter in self.places:
            new = self.parameter if is_parameter else self.encrypted
            assert new is not None
            _put(module, name, new)


class _Piece:
    """Plain tensors whose memory overlaps, most often a single one. They are encrypted together,
    and overwritten when all of them are, unless a tensor that stays plain lies there too."""

    def __init__(self) -> None:
        self.groups: list[_Group] = []
        self.kept = False

    @property
    def nbytes(self) -> int:
        return sum(group.nbytes for group in self.groups)

    def encrypt(self, key: Key, arena: Arena, activations: str, mappings: Mappings | None) -> None:
        """Replaces the plain tensors by encrypted ones and overwrites them. Replaces none if it
        raises what EncryptedTensor.from_tensor() raises."""
        for group in self.groups:
            group.encrypt(key, arena, activations)
        _to_the_end(lambda: self._settle(mappings))

    def _settle(self, mappings: Mappings | None) -> None:
        for group in self.groups:
            group.put()
        for group in self.groups:
            if mappings is not None and not self.kept and group.tensor is not None:
                for tensor in parts_of(group.tensor):
                    if not isinstance(tensor, EncryptedTensor):
                        mappings.overwrite(tensor)
        for group in self.groups:
            group.tensor = None


def _pieces(chosen: list[_Place], others: list[Tensor], formats: Formats) -> list[_Piece]:
    """Returns the tensors to encrypt, each once, grouped by the memory in which they lie."""
    groups: dict[Any, _Group] = {}
    for place in chosen:
        groups.setdefault(_identity(place.tensor), _Group(place)).add(place, formats)
    plain = [group.tensor for group in groups.values() if group.tensor is not None]
    numbers = apart(extent(tensor) for tensor in (*plain, *others))
    pieces: dict[int, _Piece] = {}
    for group, number in zip(groups.values(), numbers, strict=False):
        pieces.setdefault(number, _Piece()).groups.append(group)
    for number in numbers[len(groups) :]:
        if number in pieces:
            pieces[number].kept = True
    return list(pieces.values())


def _to_the_end(step: Callable[[], None], tries: int = 3) -> None:
    """Runs a step that can be started again after it stopped anywhere. If a signal handler raises
    meanwhile, raises its exception once the step is done."""
    try:
        step()
    except BaseException:
        if tries:
            _to_the_end(step, tries - 1)
        raise


def encrypt_module(
    model: nn.Module,
    *,
    key: Key,
    include: Choice = None,
    exclude: Choice = (),
    cipher: str = DEFAULT_CIPHER,
    progress: bool | Progress | None = None,
    wipe: bool = True,
    strict: bool = False,
    activations: str = "plain",
    quantize: str | Mapping[str, str | None] | None = None,
    skip: Iterable[str] | str = (),
) -> nn.Module:
    """Encrypts a model in place and returns it. Every parameter and buffer becomes an
    EncryptedTensor of the same name; tied ones stay tied. They are encrypted together, in one
    pyccmem.Arena, which is frozen: each page is sealed once, so that nothing can be put back from
    an earlier time. The first write to a tensor (load_state_dict(), copy_(), in place) moves it to
    another arena, as a whole, and from there on its pages have versions.

    `include` and `exclude` are patterns of qualified names as fnmatch has them
    ("encoder.*.weight"), or a function of name and tensor; without `include` all are chosen.
    `progress`: None for a bar on standard error if that is a terminal, rich is installed and the
    model is large; True and False for always and never; or a function that is called with the bytes
    done and the total. An encrypted parameter takes no gradient.

    Tensors are encrypted one after the other. Each plain tensor is overwritten with zeros, and its
    memory given back to the system, before the next is encrypted: so the plain model and its
    largest tensor are the most that is needed at once. Another reference to a plain tensor then
    shows zeros. With `wipe=False` nothing is overwritten, and memory becomes free only when the
    last reference is gone (a caller's, an optimizer's) and the allocator gives it back. Never
    overwritten are memory that a tensor which is not chosen, or which a module keeps in an
    attribute, also uses, and files behind mapped memory. Tensors that overlap are encrypted
    together. Memory that is not torch's own (an array's) is overwritten, but stays with its owner.

    A failure half-way (no memory, an interrupt, an exception of `progress`) leaves every tensor
    whole, the first ones encrypted and the others plain, and the model works. Another call goes on
    with the rest.

    Copies of weights that modules keep beside their parameters, or compute from them, stay plain
    (see plain_tensors()); a PlainTensorsWarning names them. With `strict`, such copies and tensors
    that are not chosen raise ArgumentError before anything is changed.

    `activations` is "plain", or "wiped" to put results of the encrypted tensors into memory that is
    wiped when it is freed; set_activations() says more.

    `quantize`: a block format ("q4_k", "q8_0", "int8_row", ...: pyccmem.quantized.FORMATS) that the
    weights of all nn.Linear and nn.Embedding get, and the merged experts of transformers, a few
    rows at a time; or a dict of formats by patterns of names, of which the first that fits counts,
    with None for weights that keep their elements. `skip`: patterns of names of weights, or of
    their modules, that keep them. All other tensors (biases, norms) are encrypted as they are. A
    weight whose rows are no whole number of blocks gets "q8_0" or "int8_row" instead, and a
    FormatWarning says so. A model that torchao has quantised keeps its numbers, as blocks of
    "int4_g*", "int8_g*" or "int8_row". Weights that are encrypted already are quantised, too.

    Raises, with the model unchanged, ArgumentTypeError for a `model` or `key` of another type and
    for tensors that are not dense CPU tensors, and ArgumentError for other activations and unknown
    formats; ArgumentError for a weight to be quantised that has infinite numbers or none, and
    FileFormatError for one of torchao that cannot be taken over; and what pyccmem.EncryptedTensor
    raises.
    """
    wipes(activations)
    formats = Formats(quantize, skip)
    if not isinstance(model, nn.Module):
        raise errors.ArgumentTypeError(
            f"model must be a torch.nn.Module, not {type(model).__name__}."
        )
    check_progress(progress)
    included = (lambda _name, _tensor: True) if include is None else _predicate("include", include)
    chosen, others = _chosen(model, included, _predicate("exclude", exclude), formats)
    _tell_of_plain(model, others if strict else [], strict)
    # Tensors that attributes still show must not become zeros while the model uses them.
    others += [tensor for module in model.modules() for _, tensor in beside(module)]
    work = _pieces(chosen, others, formats)
    del chosen, others
    total = sum(piece.nbytes for piece in work)
    done = 0
    mappings = Mappings() if wipe and work else None
    arena = Arena(key=key, cipher=cipher, frozen=True)
    with reporting(progress, type(model).__name__, total) as report, own_threads():
        for piece in work:
            piece.encrypt(key, arena, activations, mappings)
            done += piece.nbytes
            report(done, total)
    formats.tell()
    return model


def set_activations(target: nn.Module | Tensor, activations: str) -> None:
    """Chooses where results of an EncryptedTensor, or of those of a model, lie from now on: the
    plain tensors that products, embeddings and other operations with it return.

    "plain", the default: in torch's memory, which keeps what was in it after it is freed, until it
    is used again. "wiped": in pyccmem's memory for plaintext, which is wiped when the last tensor,
    view or array over it goes, is left out of core dumps, and reads as zeros in a forked child. It
    counts against pyccmem.set_plaintext_budget(). Values are the same either way. A result in wiped
    memory cannot be resized to more elements, as `out=` may ask for.

    Tensors that share the data follow, and so do compiled programs in the results of pyccmem's own
    operators. Copies made later take the choice over; files do not keep it. Tensors that torch
    computes from plain ones alone, and its temporaries within an operation, stay in its memory.

    Raises ArgumentTypeError for another target, ArgumentError for other activations, ClosedError,
    ForkError; nothing is changed then.
    """
    wipe = wipes(activations)
    if isinstance(target, EncryptedTensor):
        found = [target]
    elif isinstance(target, nn.Module):
        found = [p.tensor for p in places(target) if isinstance(p.tensor, EncryptedTensor)]
    else:
        raise errors.ArgumentTypeError(
            f"target must be an EncryptedTensor or a torch.nn.Module, not {type(target).__name__}."
        )
    stores = [real(tensor) for tensor in found]
    for stored in stores:
        stored.check()
    for stored in stores:
        stored.set_wipe_results(wipe)


def _tell_of_plain(model: nn.Module, others: list[Tensor], strict: bool) -> None:
    """Warns of tensors that would stay plain. With `strict`, raises ArgumentError for these and for
    `others`."""
    left = {id(tensor) for tensor in others}
    names = [place.full_name for place in places(model) if id(place.tensor) in left]
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        names += [start + name for name, tensor in beside(module) if id(tensor) not in left]
        names += [one.name for one in hidden(module, start) if one.kind != "attribute"]
    if not names:
        return
    listed = ", ".join(dict.fromkeys(names[:8])) + (", ..." if len(names) > 8 else "")
    text = (
        f"{listed} would stay plain: plain_tensors(model) lists all such tensors. What a "
        f"parametrization, weight_norm, spectral_norm or pruning computes becomes an ordinary "
        f"weight with remove_parametrizations(), remove_weight_norm(), remove_spectral_norm() or "
        f"prune.remove(), before the model is encrypted."
    )
    if strict:
        raise errors.ArgumentError(text)
    warnings.warn(text, errors.PlainTensorsWarning, stacklevel=3)


def _chosen(
    model: nn.Module,
    included: Callable[[str, Tensor], object],
    excluded: Callable[[str, Tensor], object],
    formats: Formats,
) -> tuple[list[_Place], list[Tensor]]:
    """Returns the places to encrypt, and the plain tensors that are not chosen. Raises
    ArgumentTypeError for a tensor that cannot be encrypted, MissingPackageError."""
    chosen: list[_Place] = []
    others: list[Tensor] = []
    for place in places(model):
        name, tensor = place.full_name, place.tensor
        if isinstance(tensor, EncryptedTensor) and not (
            place.is_parameter and formats.of(name, place.module, place.name, tensor)
        ):
            continue
        if not included(name, tensor) or excluded(name, tensor):
            if not isinstance(tensor, EncryptedTensor):
                others.append(tensor)
            continue
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise errors.ArgumentTypeError(
                f"{name} has no shape yet; run the model once before it is encrypted."
            )
        if not (is_torchao(tensor) or isinstance(tensor, EncryptedTensor)):
            check_encryptable(tensor, name)
        chosen.append(place)
    return chosen, others


def decrypt_module(model: nn.Module) -> nn.Module:
    """Returns the model, decrypted in place: every EncryptedTensor becomes a plain tensor in
    ordinary memory; tied ones stay tied. Parameters ask for a gradient if the encrypted ones did,
    which those of encrypt_module() do not until requires_grad_() is called. Raises IntegrityError,
    ClosedError, ForkError, OutOfMemoryError, and then leaves the model unchanged."""
    if not isinstance(model, nn.Module):
        raise errors.ArgumentTypeError(
            f"model must be a torch.nn.Module, not {type(model).__name__}."
        )
    found = [p for p in places(model) if isinstance(p.tensor, EncryptedTensor)]
    made: dict[int, Tensor] = {}
    for place in found:
        tensor = place.tensor
        assert isinstance(tensor, EncryptedTensor)
        if id(tensor) not in made:
            plain = opened(tensor).clone()
            asks = tensor.requires_grad
            made[id(tensor)] = nn.Parameter(plain, asks) if place.is_parameter else plain
    for place in found:
        _put(place.module, place.name, made[id(place.tensor)])
    return model


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    # Not only in the dict of parameters: nn.RNN keeps a list of its own.
    setattr(module, name, tensor)
