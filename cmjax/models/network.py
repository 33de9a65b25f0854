"""Networks: anything that computes becomes a `Network`, a `ModelFn` that crosses `jit` as an argument."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.types import Array, Cond

__all__ = ["Network", "combine", "from_function", "from_linen", "from_nnx", "partition", "rebuilt", "train_only"]

ModelT = TypeVar("ModelT")


class Network:
    """A network as a callable pytree, `network(x, t, cond)`; made by `from_nnx`, `from_linen` or `from_function`.

    It flattens to one tuple of arrays and one static object whose hash is known, so passing it through `jit` costs
    about what passing a tuple costs. `jax.grad`, `jax.tree.map` and optax work on it as on any pytree. Two networks
    wrapped from equal definitions share one compilation.

    Not every leaf is trained: statistics, random keys and counters are leaves too, and stay as they are (`partition`).
    """

    __slots__ = ("__weakref__", "_leaves", "_spec")  # jax.jit(network) keeps a weak reference

    def __init__(self, leaves: tuple[Any, ...], spec: _Spec):
        self._leaves, self._spec = leaves, spec

    @property
    def module(self) -> Any:
        """The nnx module, rebuilt around these arrays; the linen module; or the function."""
        spec = self._spec
        return nnx.merge(spec.definition, self.params) if spec.run is _run_nnx else spec.definition

    @property
    def params(self) -> Any:
        """The parameters as the tree they came in: an nnx `State`, linen variables, or what the function takes."""
        return jax.tree.unflatten(self._spec.treedef, self._leaves)

    @property
    def config(self) -> Any:
        """The config that the module carries as its `config`, or None."""
        return self._spec.config

    def leaves(self) -> dict[str, Any]:
        """Give the arrays by their dotted names.

        Example:
          >>> import jax.numpy as jnp
          >>> net = from_function(lambda p, x, t, cond: p["a"] * x, params={"a": jnp.float32(2.0)})
          >>> list(net.leaves()), float(net.replace({"a": jnp.float32(3.0)})(jnp.float32(2.0), 0.0))
          (['a'], 6.0)
        """
        return dict(zip(self._spec.names, self._leaves, strict=True))

    def replace(self, leaves: Mapping[str, Any]) -> Network:
        """Give a copy with other arrays.

        Args:
          leaves: the new arrays by dotted name, each of the old one's shape; all others stay.

        Raises:
          ValueError: the network has no such leaf, or one of another shape.
        """
        old = self.leaves()
        for name, leaf in leaves.items():
            if name not in old:
                raise ValueError(f"leaves must be named as Network.leaves() names them, got {name!r}.")
            if leaf.shape != old[name].shape:
                raise ValueError(f"leaf {name} must have shape {old[name].shape}, got {leaf.shape}.")
        return Network(tuple((old | dict(leaves)).values()), self._spec)

    @property
    def is_trained(self) -> tuple[bool, ...]:
        """Whether each leaf is a parameter that training changes, in the order of `leaves()`."""
        return self._spec.is_trained

    def __call__(self, x: Array, t: Array, cond: Cond = None, **options: Any) -> Array:
        """Compute the output.

        Args:
          x: f[B, *S].
          t: what the network is told about the noise, f[] or f[B].
          cond: any pytree, or None.
          **options: passed to the module or function; a `key=` becomes linen's "dropout" stream.

        Returns:
          f[B, *S].

        Raises:
          TypeError: the network is abstract.
        """
        self.refuse_abstract()
        return self._spec.run(self._spec.definition, self.params, x, t, cond, **options)

    def refuse_abstract(self) -> None:
        """Raise TypeError for a network whose weights are shapes without values."""
        if isinstance(next(iter(self._leaves), None), jax.ShapeDtypeStruct):
            raise TypeError(
                "the network must have weights, but it was loaded with abstract=True: load it without, or pass it to "
                "jax.jit(...).lower as an argument."
            )

    def __repr__(self) -> str:
        leaves = zip(self._leaves, self.is_trained, strict=True)
        size = sum(getattr(leaf, "size", 0) for leaf, is_trained in leaves if is_trained)
        return f"Network({self._spec.title}, {size:,} parameters)"


class _Spec:
    """What a network is apart from its arrays: static, compared by value, with its hash computed once."""

    __slots__ = ("_hash", "config", "definition", "is_trained", "names", "run", "title", "treedef")

    def __init__(
        self,
        run: Callable[..., Array],
        definition: Any,
        params: Any,
        title: str,
        config: Any,
        is_trained: Sequence[bool] | None,
    ):
        try:
            definition_hash = hash(definition)
        except TypeError as error:
            raise TypeError(f"{title} must be hashable to cross jit ({error}); give it tuples for lists.") from error
        flat, self.treedef = jax.tree_util.tree_flatten_with_path(params)
        self.names = tuple(_name(path) for path, _ in flat)
        chosen = [True] * len(flat) if is_trained is None else is_trained
        self.is_trained = tuple(one and _is_float(leaf) for one, (_, leaf) in zip(chosen, flat, strict=True))
        self.run, self.definition, self.title, self.config = run, definition, title, config
        self._hash = hash((definition_hash, self.treedef))

    def training(self, chosen: Sequence[bool]) -> _Spec:
        """The same, with fewer parameters that are trained."""
        spec = copy.copy(self)
        spec.is_trained = tuple(one and other for one, other in zip(chosen, self.is_trained, strict=True))
        return spec

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, _Spec) or self._hash != other._hash or self.run is not other.run:
            return False
        same = self.treedef == other.treedef and self.is_trained == other.is_trained
        return same and self.definition == other.definition


# The keyed flattening serves error messages and masks by name; the plain one is what every jitted call pays for.
jax.tree_util.register_pytree_with_keys(
    Network,
    lambda n: (tuple(zip(map(jax.tree_util.GetAttrKey, n._spec.names), n._leaves, strict=True)), n._spec),
    lambda spec, leaves: Network(tuple(leaves), spec),
    lambda n: (n._leaves, n._spec),
)


_IN_VARIABLE = jax.tree_util.GetAttrKey("value")


def _name(path: tuple[Any, ...]) -> str:
    """`down_blocks.0.conv1.kernel`; an nnx Variable adds no word of its own."""
    words = [key for key in path if key != _IN_VARIABLE]
    return jax.tree_util.keystr(tuple(words), simple=True, separator=".")


def _network(
    run: Callable[..., Array],
    definition: Any,
    params: Any,
    title: str,
    config: Any = None,
    is_trained: Sequence[bool] | None = None,
) -> Network:
    return Network(tuple(jax.tree.leaves(params)), _Spec(run, definition, params, title, config, is_trained))


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf), jnp.floating)


# ---- what is trained -------------------------------------------------------------------------------------------------


def partition(model: ModelT) -> tuple[ModelT, ModelT]:
    """Split a model into what is trained and what stays, each of the model's structure with None for the rest.

    Of a `Network` its parameters are trained; of any other pytree all float leaves. What is None already is in neither:
    the part that is trained is split into itself and nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> trained, rest = partition({"w": jnp.ones(2), "count": jnp.array(3)})
      >>> trained["count"] is None, rest["w"] is None
      (True, True)
      >>> sorted(combine(trained, rest))
      ['count', 'w']
    """
    is_trained = [
        one
        for part in jax.tree.leaves(model, is_leaf=lambda node: node is None or isinstance(node, Network))
        for one in (part.is_trained if isinstance(part, Network) else (part is not None and _is_float(part),))
    ]
    leaves, treedef = jax.tree.flatten(model, is_leaf=lambda node: node is None)
    trained = [leaf if one else None for leaf, one in zip(leaves, is_trained, strict=True)]
    rest = [None if one else leaf for leaf, one in zip(leaves, is_trained, strict=True)]
    return jax.tree.unflatten(treedef, trained), jax.tree.unflatten(treedef, rest)


def combine(trained: ModelT, rest: ModelT) -> ModelT:
    """Put the two parts of a model together again."""
    return jax.tree.map(lambda one, other: other if one is None else one, trained, rest, is_leaf=lambda x: x is None)


def train_only(network: Network, *names: str) -> Network:
    """Say which leaves of a network are trained; all others are frozen, and training shares them with other models.

    Args:
      network: the network; its arrays are shared.
      *names: of leaves or of layers, as in `Network.leaves()`: `mid_block` is all that begins with these words, and a
        pattern may have wildcards, `up_blocks.*.attentions`. None freezes the whole network.

    Returns:
      The network, trained only where it was before and a name says so.

    Raises:
      ValueError: no leaf that can be trained has such a name.

    Example:
      >>> import jax.numpy as jnp
      >>> net = from_function(lambda p, x, t, cond: p["a"] * x + p["b"], params={"a": jnp.ones(3), "b": jnp.ones(2)})
      >>> train_only(net, "b"), train_only(net)
      (Network(<lambda>, 2 parameters), Network(<lambda>, 0 parameters))
    """
    spec = network._spec
    chosen = [False] * len(spec.names)
    for pattern in names:
        told = [fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for name in spec.names]
        if not any(one and could for one, could in zip(told, spec.is_trained, strict=True)):
            near = difflib.get_close_matches(pattern, _layers(spec.names), n=3, cutoff=0.4)
            hint = f" (nearest: {', '.join(near)})" if near else ""
            raise ValueError(
                f"names must be of leaves that can be trained, as Network.leaves() has, got {pattern!r}{hint}."
            )
        chosen = [one or other for one, other in zip(chosen, told, strict=True)]
    return Network(network._leaves, spec.training(chosen))


def _layers(names: Sequence[str]) -> list[str]:
    """The names of leaves, and of everything that has some."""
    words = [name.split(".") for name in names]
    return sorted({".".join(one[:end]) for one in words for end in range(1, len(one) + 1)})


def rebuilt(network: Network, module: nnx.Module) -> Network:
    """A network around its nnx module, of which something static was changed; its arrays and what is trained stay."""
    again = from_nnx(module, trained=nnx.filterlib.Everything())
    return Network(network._leaves, again._spec.training(network.is_trained))


# ---- wrappers --------------------------------------------------------------------------------------------------------


def from_nnx(module: nnx.Module, *, trained: Any = nnx.Param) -> Network:
    """Wrap a flax.nnx module that is called as `module(x, t, cond)`.

    The leaves are the module's arrays: for a `UNet` exactly its parameters. A module in the style of nnx, with
    `nnx.Dropout` or `nnx.BatchNorm` inside, should be in eval mode: a call changes nothing outside itself, so random
    streams would repeat and statistics would be forgotten. `training` leaves keys, counters and statistics alone; in a
    training loop of your own, `jax.grad` takes `models.partition(network)[0]`.

    Args:
      module: the module; it is copied in structure, and its arrays are shared.
      trained: which arrays are parameters: a type of nnx Variable, or any filter of nnx.

    Returns:
      The network. `network.module` is the module again.

    Raises:
      TypeError: the module holds something that has no hash.

    Example:
      >>> from flax import nnx
      >>> class Net(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.linear = nnx.Linear(3, 3, rngs=rngs)
      ...     def __call__(self, x, t, cond=None):
      ...         return self.linear(x)
      >>> from_nnx(Net(nnx.Rngs(0)))
      Network(Net, 12 parameters)
    """
    graphdef, state = nnx.split(module)
    chosen = nnx.filterlib.to_predicate(trained)
    is_trained = [chosen(path, leaf) for path, leaf in nnx.to_flat_state(state) for _ in jax.tree.leaves(leaf)]
    return _network(_run_nnx, graphdef, state, type(module).__name__, getattr(module, "config", None), is_trained)


def _run_nnx(graphdef: Any, state: Any, *inputs: Any, **options: Any) -> Array:
    return nnx.merge(graphdef, state)(*inputs, **options)


def from_linen(module: Any, variables: Any, *, trained: Sequence[str] = ("params",)) -> Network:
    """Wrap a flax.linen module whose `__call__` is `(x, t, cond)`.

    Args:
      module: the module; static, so it must be hashable, as linen modules are.
      variables: what `module.init` returned, all collections; the leaves.
      trained: the collections whose leaves are parameters. All others, such as "batch_stats", stay as they are.

    Returns:
      The network. A call with `key=` gives the module its "dropout" stream, and `self.has_rng("dropout")` tells it so.

    Raises:
      TypeError: the module has no hash, or variables are not what `init` returns.

    Example:
      >>> import jax, jax.numpy as jnp, flax.linen as nn
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, t, cond=None):
      ...         return nn.Dense(3)(x)
      >>> variables = Net().init(jax.random.key(0), jnp.ones((1, 3)), jnp.zeros(()))
      >>> from_linen(Net(), variables)(jnp.ones((2, 3)), jnp.zeros(())).shape
      (2, 3)
    """
    if not hasattr(variables, "keys"):
        raise TypeError(f"variables must be the mapping that module.init returned, got {type(variables).__name__}.")
    is_trained = [
        getattr(path[0], "key", None) in trained for path, _ in jax.tree_util.tree_leaves_with_path(variables)
    ]
    return _network(_run_linen, module, variables, type(module).__name__, getattr(module, "config", None), is_trained)


def _run_linen(module: Any, variables: Any, *inputs: Any, key: Any = None, **options: Any) -> Array:
    return module.apply(variables, *inputs, rngs=None if key is None else {"dropout": key}, **options)


def from_function(fn: Callable[..., Array], params: Any = None) -> Network:
    """Wrap a function `fn(params, x, t, cond)`, or `fn(x, t, cond)` without parameters.

    Args:
      fn: the function; static, so use the same function object to share a compilation. Arrays that it closes over
        are constants of the compiled program: give them as params if they may change.
      params: any pytree of arrays, the leaves; None for none.

    Returns:
      The network. It passes a `key=` to the function.

    Raises:
      TypeError: fn is not callable or has no hash.

    Example:
      >>> import jax.numpy as jnp
      >>> net = from_function(lambda w, x, t, cond: w * x, params=jnp.float32(2.0))
      >>> float(net(jnp.float32(3.0), jnp.float32(0.0)))
      6.0
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function of (params, x, t, cond), got {type(fn).__name__}.")
    title = getattr(fn, "__name__", type(fn).__name__)
    return _network(_run_function if params is None else _run_with_params, fn, params, title)


def _run_function(fn: Callable[..., Array], _: None, *inputs: Any, **options: Any) -> Array:
    return fn(*inputs, **options)


def _run_with_params(fn: Callable[..., Array], params: Any, *inputs: Any, **options: Any) -> Array:
    return fn(params, *inputs, **options)
