"""Selects, trains and watches: everything COMPASS computes, without orchestration or tracking."""
