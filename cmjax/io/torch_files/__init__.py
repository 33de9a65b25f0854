"""Files of torch.save, read without torch: nothing in them is executed."""

from cmjax.io.torch_files.pickles import ParameterDict, StridedTensor
from cmjax.io.torch_files.reader import TorchFile, check_path, open_pt, read_pt

__all__ = ["ParameterDict", "StridedTensor", "TorchFile", "check_path", "open_pt", "read_pt"]
