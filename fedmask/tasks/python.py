"""Tasks from a person's own Python: "my_tasks:reviews" is `reviews` of FOLDER/my_tasks.py, a Task or a function that
returns one.
"""

import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from fedmask.errors import FedmaskError
from fedmask.tasks.task import Task, unknown_task


def load(root: str | None, names: Sequence[str] | None) -> tuple[Task, ...]:
    """The tasks called "module:attribute" in the folder `root`, in that order; a module runs once.

    Raises FedmaskError: no root or names, a name without ":", no such module or attribute, something that is no Task,
    and whatever goes wrong inside the module, with its place.
    """
    if root is None or names is None:
        raise FedmaskError('data=python needs data.root=FOLDER and data.tasks=["module:attribute"]')
    folder = Path(root)
    if not folder.is_dir():
        raise FedmaskError(f"data.root={root}: no such folder")
    modules: dict[str, ModuleType] = {}
    tasks = []
    for name in names:
        module_name, colon, attribute = name.partition(":")
        if not (module_name and colon and attribute):
            raise FedmaskError(f'data.tasks: {name!r} is not "module:attribute"')
        if module_name not in modules:
            modules[module_name] = _run(folder, module_name)
        tasks.append(_task(modules[module_name], attribute, name, folder))
    return tuple(tasks)


def _run(folder: Path, module_name: str) -> ModuleType:
    path = folder / f"{module_name}.py"
    if not path.is_file():
        raise FedmaskError(f"{path}: no such file; {folder} has: {', '.join(_modules_in(folder)) or 'no module'}")
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise FedmaskError(f"{path}: not a Python module")
    module = importlib.util.module_from_spec(spec)
    with _importable(folder, module), _told_in_one_line(path):
        spec.loader.exec_module(module)
    return module


def _task(module: ModuleType, attribute: str, name: str, folder: Path) -> Task:
    if not hasattr(module, attribute):
        public = [key for key, value in vars(module).items() if isinstance(value, Task)]
        raise unknown_task(attribute, public, f"{module.__name__}.py")
    value = getattr(module, attribute)
    if callable(value):
        with _importable(folder, module), _told_in_one_line(folder / f"{module.__name__}.py"):
            value = value()
    if not isinstance(value, Task):
        raise FedmaskError(
            f"data.tasks: {name} is a {type(value).__name__}, not a fedmask.Task or a function giving one"
        )
    return value


@contextmanager
def _importable(folder: Path, module: ModuleType) -> Iterator[None]:
    """While a person's code runs, it may import its neighbours; the path is then as it was.

    The folder comes last, so that a neighbour's name hides no installed package.
    """
    path, hidden = list(sys.path), sys.modules.get(module.__name__)
    sys.path.append(str(folder))
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        sys.path[:] = path
        del sys.modules[module.__name__]
        if hidden is not None:
            sys.modules[module.__name__] = hidden


@contextmanager
def _told_in_one_line(path: Path) -> Iterator[None]:
    """Turns whatever a person's code raises into one line with the last line of that file that was on the way."""
    try:
        yield
    except FedmaskError:
        raise
    except Exception as error:
        lines = [
            f":{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
        ]
        detail = " ".join(str(error).split())
        raise FedmaskError(f"{path}{''.join(lines[-1:])}: {type(error).__name__}: {detail}") from error


def _modules_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.py"))
