"""Tasks from a person's own Python: "my_tasks:reviews" is `reviews` of FOLDER/my_tasks.py, a Task or a function that
returns one.

Modules of that folder are run anew whenever tasks are loaded, and are gone afterwards; which files they opened is
remembered, so that it can be told whether one has changed since.
"""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

from fedmask.errors import FedmaskError
from fedmask.shown import in_line
from fedmask.tasks import AS_FOUND, Reading, Stamp, stamp_of
from fedmask.tasks.task import Task, unknown_task

_OURS = ("__main__", "fedmask", "server", "client", "scripts")
"""Packages that are not a person's own, though they may lie in the same folder: one Task class serves all."""


def load(root: str | None, names: Sequence[str] | None, reading: Reading = AS_FOUND) -> tuple[Task, ...]:
    """The tasks called "module:attribute" in the folder `root`, in that order; a module runs once.

    Raises FedmaskError: no root or names, a name without ":", no such module or attribute, something that is no Task,
    and whatever goes wrong inside the module, with its place.
    """
    if root is None or names is None:
        raise FedmaskError('data=python needs data.root=FOLDER and data.tasks=["module:attribute"]')
    folder = Path(root)
    if not folder.is_dir():
        raise FedmaskError(f"data.root={in_line(root)}: no such folder")
    wanted = [_parts(name) for name in names]
    with _importable(folder), _noting_files(folder) as files:
        modules = {name: _run(folder, name) for name in dict.fromkeys(module for module, _ in wanted)}
        tasks = [
            _task(modules[module], attribute, name, folder)
            for name, (module, attribute) in zip(names, wanted, strict=True)
        ]
    _files_read[root, tuple(names)] = files
    return tuple(task.with_classes(reading.classes) for task in tasks)


def stamp(root: str | None, names: Sequence[str] | None) -> Stamp:
    """Of the modules, and of all files that those of this folder opened when they were last run."""
    files = {Path(root or "") / f"{name.partition(':')[0]}.py" for name in names or ()}
    return stamp_of(sorted(files | _files_read.get((root or "", tuple(names or ())), set())))


def _parts(name: str) -> tuple[str, str]:
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise FedmaskError(f'data.tasks: {name!r} is not "module:attribute"')
    return module, attribute


def _run(folder: Path, module_name: str) -> ModuleType:
    path = folder / f"{module_name}.py"
    if not path.is_file():
        raise FedmaskError(f"{path}: no such file; {folder} has: {', '.join(_modules_in(folder)) or 'no module'}")
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise FedmaskError(f"{path}: not a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    with _told_in_one_line(path):
        spec.loader.exec_module(module)
    return module


def _task(module: ModuleType, attribute: str, name: str, folder: Path) -> Task:
    if not hasattr(module, attribute):
        public = [key for key, value in vars(module).items() if isinstance(value, Task)]
        raise unknown_task(attribute, public, f"{module.__name__}.py", "no name of that module is a fedmask.Task")
    value = getattr(module, attribute)
    if callable(value):
        with _told_in_one_line(folder / f"{module.__name__}.py"):
            value = value()
    if not isinstance(value, Task):
        raise FedmaskError(
            f"data.tasks: {name} is a {type(value).__name__}, not a fedmask.Task or a function giving one"
        )
    return value


# ----------------------------------------------------------------------------------------------------------------------
# What a person's code imports and reads
# ----------------------------------------------------------------------------------------------------------------------


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """While a person's code runs, it may import its neighbours, anew; path and modules are then as they were.

    The folder comes last, so that a neighbour's name hides no installed package. No bytecode is kept: it is told from
    its source by whole seconds, and two versions of a file may share one.
    """
    path, keeps_none, modules = list(sys.path), sys.dont_write_bytecode, dict(sys.modules)
    for name in _modules_of(folder):
        del sys.modules[name]
    sys.path.append(str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, keeps_none
        for name in _modules_of(folder):
            del sys.modules[name]
        sys.modules.update({name: module for name, module in modules.items() if name not in sys.modules})


def _modules_of(folder: Path) -> list[str]:
    """Names of the imported modules whose files lie in the folder, this program's and installed ones apart."""
    within = tuple(f"{path}{os.sep}" for path in {folder.absolute(), folder.resolve()})
    files = {name: getattr(module, "__dict__", {}).get("__file__") for name, module in sys.modules.items()}
    return [
        name
        for name, file in files.items()
        if isinstance(file, str) and file.startswith(within) and name.partition(".")[0] not in _OURS and _is_own(file)
    ]


def _is_own(file: str) -> bool:
    """Whether a file may be a person's own: none of Python's, of an installed package's or of the system's."""
    installed = tuple(f"{prefix}{os.sep}" for prefix in (sys.prefix, sys.base_prefix))
    return not file.startswith(("/proc/", "/sys/", "/dev/", *installed)) and "site-packages" not in file


_files_read: dict[tuple[str, tuple[str, ...]], set[Path]] = {}
"""By root and names what the last loading of these tasks has opened."""

_noted: set[str] | None = None
"""Paths that are opened, while a person's code runs; else None."""


@contextmanager
def _noting_files(folder: Path) -> Iterator[set[Path]]:
    """Gives a set into which, at the end, the files go that were opened meanwhile, and the folder's modules' files."""
    global _noted
    _listen()
    files, _noted = set[Path](), set[str]()
    try:
        yield files
        modules = [vars(sys.modules[name])["__file__"] for name in _modules_of(folder)]
        files |= {Path(path) for path in (*_noted, *modules) if _is_own(path) and Path(path).is_file()}
    finally:
        _noted = None


@cache
def _listen() -> None:
    """Once a process: Python tells every opening of a file, by whatever library, to such a hook, which then stays."""
    sys.addaudithook(_note)


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _noted is not None and isinstance(arguments[0], str | bytes | os.PathLike):
        _noted.add(os.path.abspath(os.fsdecode(arguments[0])))  # noqa: PTH100 (a path of any kind)


# ----------------------------------------------------------------------------------------------------------------------
# Faults
# ----------------------------------------------------------------------------------------------------------------------


@contextmanager
def _told_in_one_line(path: Path) -> Iterator[None]:
    """Turns whatever a person's code raises into one line with the last line of that file that was on the way.

    A fault inside this library, which that code called, is raised as it is.
    """
    try:
        yield
    except FedmaskError:
        raise
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
        if any(Path(frame.filename).is_relative_to(_LIBRARY) for frame in frames):
            raise
        lines = [f":{frame.lineno}" for frame in frames if Path(frame.filename) == path.absolute()]
        detail = " ".join(str(error).split())
        raise FedmaskError(f"{path}{''.join(lines[-1:])}: {type(error).__name__}: {detail}") from error


_LIBRARY = Path(__file__).resolve().parents[1]


def _modules_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.py"))
