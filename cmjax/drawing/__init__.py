"""Draw many images: in batches over devices, in numbered shards on disk, and by several processes at once.

Image i depends on the seed and on i alone, so that the batch size, the number of devices, the number of processes and
interruptions change no image. The command `cmjax sample` is a thin layer over this package.

    batches    compile a batch for the devices of this process, and draw image after image by number
    devices    which devices share a batch, and how many images each of them draws at a time
    shards     a folder of numbered shards: each is written whole or not at all, and only missing ones are drawn
    hosts      several processes, which meet once at the start, divide the shards, and then run independently
    grids      lay images out, one row a class

Example:
  Five images of two classes, in batches of two:

  >>> import cmjax, jax
  >>> model, config = cmjax.load("fashion-mnist-cm")
  >>> state = cmjax.cm.init(config, num_steps=1)
  >>> draw = compile_draw(model, state, (2, 28, 28, 1), classes=[5, 9], seed=0)
  >>> draw_all(draw, model, 5).images.shape
  (5, 28, 28, 1)

  The same five as shards of three images, which a second call would find complete:

  >>> import pathlib, tempfile
  >>> shards = Shards(pathlib.Path(tempfile.mkdtemp()) / "drawn", count=5, size=3, run={"seed": 0})
  >>> shards.check()
  >>> shards.begin()
  >>> draw_shards(draw, model, shards, shards.missing(), classes=[5, 9])
  5
  >>> shards.missing()
  []
"""

from cmjax.drawing.batches import (
    Batches,
    Drawn,
    class_of,
    compile_batches,
    compile_draw,
    default_batch,
    draw_all,
    image_shape,
)
from cmjax.drawing.devices import BatchPlan, choose_devices, plan_batch, use_cores_as_devices
from cmjax.drawing.grids import class_grid, strips
from cmjax.drawing.hosts import Hosts, Repeated, join
from cmjax.drawing.shards import Shards, draw_shards, read_run

__all__ = [
    "BatchPlan",
    "Batches",
    "Drawn",
    "Hosts",
    "Repeated",
    "Shards",
    "choose_devices",
    "class_grid",
    "class_of",
    "compile_batches",
    "compile_draw",
    "default_batch",
    "draw_all",
    "draw_shards",
    "image_shape",
    "join",
    "plan_batch",
    "read_run",
    "strips",
    "use_cores_as_devices",
]
