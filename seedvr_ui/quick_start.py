"""What a start leaves out because nobody needs it: half of its time. Without gradio.

Gradio writes a `.pyi` file beside each of its components whenever it is imported, for editors. It parses the sources of
all components for that, which is most of the import, and it writes into the installation, at the same time in each
process that starts. Collecting garbage while thousands of classes are made finds none.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_MODULE, _FUNCTION = "gradio.component_meta", "create_or_modify_pyi"


@contextmanager
def without_stub_files() -> Iterator[None]:
    """Gradio, if it is imported for the first time within, writes no `.pyi` files, now and later."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextmanager
def without_collection() -> Iterator[None]:
    """No garbage is collected within. What is there at the end stays for good and is left out of later collections."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == _MODULE else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Loads the module as ever, then puts a function that does nothing in the place of the one that writes."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if hasattr(module, _FUNCTION):  # a later Gradio may do it elsewhere, or no longer
            setattr(module, _FUNCTION, _write_nothing)


def _write_nothing(*_: object) -> None:
    pass
