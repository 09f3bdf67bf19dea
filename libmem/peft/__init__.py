"""libmem.peft: LoRA adapters as memory that processes share.

    import libmem, libmem.peft

    libmem.peft.import_folder(client, "/skills/sql", "adapters/sql", model)
    adapters = libmem.peft.attach(client, model)
    adapters.use("/skills/sql")         # `model` answers with it, from the daemon's memory
    adapters.use(None)                  # and without

Needs the extra `models`: torch, transformers and peft.
"""

from libmem.hf.fingerprint import fingerprint_of_base
from libmem.peft.adapters import Adapters, attach
from libmem.peft.folder import export_folder, import_folder

__all__ = ["Adapters", "attach", "export_folder", "fingerprint_of_base", "import_folder"]
