"""What every command needs, done once in the process off which the tests' commands are forked (forked.py)."""

# ruff: noqa: F401
from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from unittest.mock import patch

import altair
import pandas
import pyarrow.dataset
import torch._dynamo
import wandb.sdk.launch.inputs.internal
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

import headdyn.analysis.attention_measure
import headdyn.analysis.circuits_measure
import headdyn.analysis.loss_measure
import headdyn.analysis.probes_measure
import headdyn.estimate
import headdyn.finish
import headdyn.models.families
import headdyn.pipeline
import headdyn.report.run_page
import headdyn.report.sweep_page
import headdyn.run
import headdyn.studies
import tests.forked
from headdyn.report.page import vega

with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, HEADDYN_CACHE=folder):
    # Takes 2 s where a cache is empty, as those of tests are. Put together in a process of its own, since the threads
    # that vl_convert begins do not outlive a fork; here the file is read.
    subprocess.run([sys.executable, "-c", "from headdyn.report.page import vega; vega()"], check=True)
    vega()

threadpool_limits(1, "blas")  # as in the tests' own process (conftest.py)
gc.collect()
gc.freeze()  # so that no collection in a forked process writes to the pages that it shares
