"""What `run.py` is made of, and the scripts that write the lock and the README."""
