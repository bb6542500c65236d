"""`scripts/tune.py` keeps what a search finds, shows it, and forgets it."""

import pytest
import tune
from tune import Config

from scratchnet.errors import ConfigError
from scratchnet.kernels.cpu import gemm_tuning
from scratchnet.kernels.cpu.gemm_cuts import Cuts, get_cuts, set_cuts


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(gemm_tuning, "writable_folder", lambda: tmp_path / "kernels")
    monkeypatch.setattr(gemm_tuning, "search", lambda: Cuts(216, 1, 2, 3, 4))
    monkeypatch.delenv(gemm_tuning.VARIABLE, raising=False)
    before = get_cuts()
    yield tmp_path
    set_cuts(before)


def test_what_is_found_is_kept_shown_and_forgotten(folder, capsys):
    tune.main(Config())
    assert get_cuts() == Cuts(216, 1, 2, 3, 4) and len(list(folder.iterdir())) == 1
    tune.main(Config(show=True))
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and "m_block 216" in first and first.endswith("measured here")
    tune.main(Config(forget=True))
    assert get_cuts() == gemm_tuning.start() and not list(folder.iterdir())


def test_what_could_not_be_used_later_is_not_searched_for(folder, monkeypatch):
    with pytest.raises(ConfigError, match="--show or --forget, got both"):
        tune.main(Config(show=True, forget=True))
    monkeypatch.setenv(gemm_tuning.VARIABLE, "off")
    with pytest.raises(ConfigError, match="SCRATCHNET_TUNING to be on, got off"):
        tune.main(Config())
    gemm_tuning.kept_in().mkdir()
    for config in (Config(), Config(forget=True)):
        with pytest.raises(ConfigError, match=r"expected a file or nothing at .*json, got a folder; remove it"):
            tune.main(config)
    gemm_tuning.kept_in().rmdir()
    monkeypatch.setattr(gemm_tuning, "writable_folder", lambda: None)
    with pytest.raises(ConfigError, match="set SCRATCHNET_CACHE_DIR"):
        tune.main(Config())
    assert not list(folder.iterdir())
