"""Find out whether the kernel accepts a module's file, without loading it.

A signature that does not match a module's content is refused even if signatures are not enforced
(module_sig_check() in kernel/module/signing.c): EKEYREJECTED, "Key was rejected by service". No
tool checks that beforehand: modinfo(8) shows the signer but cannot verify the signature, because
the key is in the kernel.

Therefore init_module(2) or finit_module(2) is called with parameters that cannot be read (NULL).
The kernel (load_module() in kernel/module/main.c) checks the signature first, then the file's
format and vermagic, then whether a module of that name is loaded (EEXIST), and at last reads the
parameters (EFAULT). The module cannot be loaded in this way; on some kernels the taint flag of an
unsigned module remains.
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
"""Other errors are not about the file: a kernel without the call, no memory, a policy."""


def refusal(module: Installed, root: Path = Path("/")) -> str | None:
    """Why the kernel would not load a module; None if it would, or if that cannot be found out.

    Only for modules that are loaded: while the kernel checks the file of another one, loading that
    module fails with EBUSY. Without CAP_SYS_MODULE the answer is always EPERM.
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
