"""Asking the kernel whether it takes a module's file, without loading it.

A signature that does not fit a module's content is refused also where signatures are not enforced
(module_sig_check() in kernel/module/signing.c): EKEYREJECTED, "Key was rejected by service". No
tool tells beforehand: modinfo(8) shows who signed and not whether it is true, and the key is in the
kernel.

So it is asked, by init_module(2) or finit_module(2) with parameters that cannot be read (NULL). The
kernel (load_module() in kernel/module/main.c) looks at the signature first, then at the file's
format and vermagic, and then at whether a module of that name is loaded: EEXIST. Where none is, it
comes to the parameters at last: EFAULT. It cannot be loaded so, whatever happens meanwhile, and
nothing is left of it but, on some kernels, the taint flag of a module that is not signed.
"""

from __future__ import annotations

import ctypes
import os
from errno import EBADMSG, EKEYEXPIRED, EKEYREJECTED, EKEYREVOKED, ENOEXEC, ENOKEY, ENOPKG, EPERM
from pathlib import Path
from typing import Final

from nodeagent.kernel.modules import Installed, content_of, opened

_INIT_MODULE: Final = {"x86_64": 175, "aarch64": 105, "ppc64le": 128}
_FINIT_MODULE: Final = {"x86_64": 313, "aarch64": 273, "ppc64le": 353}

_REFUSALS: Final = frozenset(
    {EBADMSG, EKEYEXPIRED, EKEYREJECTED, EKEYREVOKED, ENOEXEC, ENOKEY, ENOPKG, EPERM}
)
"""All else says nothing of the file: a kernel without the call, no memory, another's policy."""


def refusal(module: Installed, root: Path = Path("/")) -> str | None:
    """Why the kernel would not load a module, in its words; None where it would or cannot be asked.

    Ask of modules that are loaded: while the kernel looks at another one's file, loading that fails
    with EBUSY. Without CAP_SYS_MODULE the answer is always EPERM's.
    """
    machine = os.uname().machine
    if machine not in _INIT_MODULE:
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if module.filename.endswith(".ko"):
            fd = opened(module, root)
            try:
                libc.syscall(ctypes.c_long(_FINIT_MODULE[machine]), fd, None, 0)
            finally:
                os.close(fd)
        else:
            content = content_of(module, root)
            if content is None:
                return None
            length = ctypes.c_ulong(len(content))
            libc.syscall(ctypes.c_long(_INIT_MODULE[machine]), content, length, None)
    except OSError:
        return None
    number = ctypes.get_errno()
    return os.strerror(number) if number in _REFUSALS else None
