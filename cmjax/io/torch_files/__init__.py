"""Files of torch.save, read without torch: nothing in them is executed."""

from cmjax.io.torch_files.reader import check_path, read_pt

__all__ = ["check_path", "read_pt"]
