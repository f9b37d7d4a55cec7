"""Names of other packages that this one replaces: a function or class of a module, the forward of one nn.Module.

Who asks for a replacement is its holder; a name is put back when its last holder lets go. What was there before comes
back as the identical object. A name that somebody else has replaced meanwhile is left alone, with a warning.
"""

import threading
import types
import warnings
import weakref
from typing import Any, Callable, Hashable, Optional

_ABSENT = object()  # the owner's class has the name, the owner itself does not
_lock = threading.RLock()  # a finalizer may release while another call is inside


class Replacement:
    """What stands under ``name`` of ``owner`` instead of ``original``. It knows no owner: an owner can be collected."""

    def __init__(self, name: str, original: Any) -> None:
        self.name = name
        self.original = original
        self.value: Any = None
        self.holders: set = set()

    @property
    def active(self) -> bool:
        """Whether somebody holds it. One that is not does what the original did, wherever it is still called from."""
        return bool(self.holders)

    def stands(self, owner: Any) -> bool:
        """Whether the name still means this replacement."""
        there = vars(owner).get(self.name, _ABSENT)
        return getattr(there, "__func__", there) is self.value


_replaced: "weakref.WeakKeyDictionary[Any, dict[str, Replacement]]" = weakref.WeakKeyDictionary()


def find(owner: Any, name: str) -> Optional[Replacement]:
    """The replacement of a name that somebody holds, or None."""
    return _replaced.get(owner, {}).get(name)


def hold(owner: Any, name: str, holder: Hashable, make: Callable[[Replacement], Any]) -> bool:
    """Has ``name`` of ``owner`` replaced by what ``make`` returns, until ``holder`` releases it.

    Of an nn.Module (or any object that is not a module or class) the replacement becomes a method. Returns whether the
    name means something else than before.
    """
    with _lock:
        there = find(owner, name)
        if there is not None:
            there.holders.add(holder)
            return False
        entry = Replacement(name, vars(owner).get(name, _ABSENT))
        entry.value = make(entry)
        entry.holders.add(holder)
        bound = not isinstance(owner, (types.ModuleType, type))
        setattr(owner, name, types.MethodType(entry.value, owner) if bound else entry.value)
        _replaced.setdefault(owner, {})[name] = entry
        return True


def release(owner: Any, name: str, holder: Hashable) -> bool:
    """Undoes ``hold``. Returns whether the original was put back."""
    with _lock:
        entry = find(owner, name)
        if entry is None or holder not in entry.holders:
            return False
        entry.holders.discard(holder)
        if entry.holders:
            return False
        del _replaced[owner][name]
        if not entry.stands(owner):
            place = getattr(owner, "__name__", type(owner).__name__)
            warnings.warn(f"{place}.{name} was replaced by someone else meanwhile: left alone", stacklevel=4)
            return False
        if entry.original is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, entry.original)
        return True


def held(owner: Any, name: str, holder: Hashable) -> bool:
    """Whether ``holder`` has it replaced."""
    entry = find(owner, name)
    return entry is not None and holder in entry.holders
