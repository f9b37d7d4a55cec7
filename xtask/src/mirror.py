"""Prints, a line each, which public names of metalcore have no docstring and where the stub of the extension module,
whose path is the argument, differs from the module."""

import ast
import inspect
import sys

import metalcore
import metalcore_backend
from metalcore import _native


def undocumented():
    for module in (metalcore, metalcore_backend):
        for name in module.__all__:
            value = getattr(module, name)
            if not inspect.getdoc(value):
                yield f"{module.__name__}.{name}: no docstring"
            if inspect.isclass(value):
                for member, attribute in vars(value).items():
                    if not member.startswith("_") and callable(attribute) and not inspect.getdoc(getattr(value, member)):
                        yield f"{module.__name__}.{name}.{member}: no docstring"


def stub_names(body):
    """Names that a module or class of the stub has, special ones left out: functions with their parameters."""
    for node in body:
        if getattr(node, "name", "__").startswith("__"):
            continue
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            everything = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
            yield node.name, [a.arg for a in everything if a is not None and a.arg not in ("self", "cls")]
        elif isinstance(node, ast.ClassDef):
            yield node.name, dict(stub_names(node.body))


def there(value):
    """The same of what is there; None for what is neither a class nor a function."""
    if inspect.isclass(value):
        return {name: there(member) for name, member in vars(value).items() if not name.startswith("__")}
    if inspect.isroutine(value):
        return [name for name in inspect.signature(value).parameters if name not in ("self", "cls")]
    return None


def differences(where, stub, real):
    for name in sorted(stub.keys() | real.keys()):
        full = f"{where}.{name}"
        if name not in real:
            yield f"{full}: in the stub only"
        elif name not in stub:
            yield f"{full}: not in the stub"
        elif isinstance(stub[name], dict) and isinstance(real[name], dict):
            yield from differences(full, stub[name], real[name])
        elif isinstance(stub[name], list) and isinstance(real[name], list) and stub[name] != real[name]:
            yield f"{full}: parameters {', '.join(stub[name])} in the stub, {', '.join(real[name])} in the module"


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        stub = dict(stub_names(ast.parse(file.read()).body))
    real = {name: there(value) for name, value in vars(_native).items() if not name.startswith("__")}
    for finding in (*undocumented(), *differences("metalcore._native", stub, real)):
        print(finding)


main()
