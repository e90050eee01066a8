#!/usr/bin/env python3
"""Write docker/.env and one random secret per file; never touches what is already there.

    python3 docker/make_env.py [FOLDER]       # FOLDER: default the one of this file

The folder of secrets is for its owner alone (0700). The files in it are readable (0444), because
the account inside the containers has another number than yours, and reaches the file only.
"""

import os
import secrets
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = (
    "postgres_password",
    "prefect_db_password",
    "prefect_password",
    "mlflow_db_password",
    "mlflow_password",
    "mlflow_secret_key",
    "s3_secret_key",
)
RANDOM_BYTES = 32


def write_new(path: Path, text: str, mode: int) -> bool:
    """Write a file that is not there yet; return whether it was written."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        os.fchmod(handle, mode)  # whatever the umask says
        file.write(text)
    return True


def main() -> None:
    """Write what is missing and say what was there."""
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else HERE
    store = folder / "secrets"
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    store.chmod(0o700)
    made = [n for n in NAMES if write_new(store / n, secrets.token_urlsafe(RANDOM_BYTES), 0o444)]
    kept = [name for name in NAMES if name not in made]
    example = (HERE / ".env.example").read_text(encoding="utf-8")
    wrote = write_new(folder / ".env", example, 0o600)
    (folder / "data").mkdir(exist_ok=True)  # else the engine makes it, owned by root
    print(f"{folder / '.env'}: {'written' if wrote else 'kept as it was'}")
    print(f"{store}: {len(made)} secrets made{f', {len(kept)} kept' if kept else ''}")
    print("Logins: user compass; the passwords are in prefect_password and mlflow_password there.")


if __name__ == "__main__":
    main()
