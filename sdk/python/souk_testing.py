"""Short ways to write a call down, for unit tests under plain Python.

Importing this module makes `wit_world` and `componentize_py_types` importable outside a component: their stubs hold plain
dataclasses, so they serve as modules too. The host's functions are the fakes below; `set_product` and `set_kv` fill them.
"""
import importlib.machinery
import importlib.util
import pathlib
import sys

HERE = pathlib.Path(__file__).parent


class _Stubs:
    """Finds the `.pyi` files beside this one."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in ("wit_world", "componentize_py_types"):
            return None
        place = HERE.joinpath(*name.split("."))
        package = place / "__init__.pyi"
        file = package if package.is_file() else place.with_suffix(".pyi")
        loader = importlib.machinery.SourceFileLoader(name, str(file))
        folders = [str(place)] if file is package else None
        return importlib.util.spec_from_file_location(
            name, file, loader=loader, submodule_search_locations=folders
        )


sys.meta_path.insert(0, _Stubs())
sys.path.insert(0, str(HERE.parent / "src"))
sys.dont_write_bytecode = True

from wit_world.imports import host, types  # noqa: E402

_products = {}
_kv = {}
_log = []

host.log = lambda level, text: _log.append((level, text))
host.lookup_product = _products.get
host.kv_get = _kv.get


def reset():
    """Forgets every product, value and log line."""
    _products.clear()
    _kv.clear()
    _log.clear()


def set_product(found):
    """Lets `lookup_product` find a product."""
    _products[found.sku] = found


def set_kv(key, value):
    """Lets `kv_get` find a value."""
    _kv[key] = value.encode() if isinstance(value, str) else value


def logged():
    """What was logged since the last `reset`: pairs of level and text."""
    return list(_log)


def context(**change):
    """A call in pounds at the beginning of time, from nowhere, by no one; `change` is what the test is about."""
    call = dict(
        now_ms=0,
        currency="GBP",
        country="",
        region=None,
        language="en-GB",
        segments=[],
        customer=None,
        coupons=[],
        seed=0,
        settings="",
    )
    return types.Context(**{**call, **change})


def product(sku, price, tags=()):
    """A product in stock, whose title is its SKU."""
    return types.Product(sku, sku, price, None, list(tags), [], types.StockHint_InStock())


def line(number, of, quantity):
    """A line that the shopper added, at the product's price."""
    return types.Line(number, of, quantity, of.price * quantity, None)
