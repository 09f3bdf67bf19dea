"""The same machine over LMDB and page files: a few runs, for each commit waits for the disk."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, settings

from tests.kernel.test_machine import BUDGETS, KernelMachine
from tests.kernel.world import World


class RealKernelMachine(KernelMachine):
    """Rules as before; the table's failures are left to the tests of the store."""

    def make_world(self) -> World:
        self._directory = TemporaryDirectory()
        return World(Path(self._directory.name), is_real=True, **BUDGETS)

    def teardown(self) -> None:
        super().teardown()
        self._directory.cleanup()


TestRealKernel = RealKernelMachine.TestCase
TestRealKernel.settings = settings(
    max_examples=12,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
