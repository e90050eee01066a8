# Aliases of run.py, which needs nothing but Python.
.PHONY: demo test slow check lock readme docs clean

demo test check lock readme docs clean:
	python3 run.py $@

slow:
	python3 run.py test --only-slow
