# `make demo` runs the main job, `make test` passes the tests; each makes the environment it needs in .venv/.
PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation

.PHONY: demo test lint clean

demo: .venv/ready
	.venv/bin/qct-node demo

# Two processes, a file of tests in one of them, in the files' order: long ones come early enough to fill both.
test: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

# pyradiomics has only a source package, and needs numpy, setuptools and wheel before it can build; the package also
# holds the images and values that its numbers are tested against.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) pip setuptools wheel numpy
	.venv/bin/pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-binary pyradiomics \
		--dest .venv/pyradiomics-source pyradiomics==3.0.1
	PYTHONPATH=.ci/pyradiomics-build $(PIP) .venv/pyradiomics-source/pyradiomics-3.0.1.tar.gz
	tar -xzf .venv/pyradiomics-source/pyradiomics-3.0.1.tar.gz -C .venv/pyradiomics-source --strip-components=1
	$(PIP) --editable ".[test]"
	touch $@

clean:
	rm -rf .venv demo-output .pytest_cache .mypy_cache .ruff_cache
