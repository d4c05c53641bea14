"""Shared by all tests: one thread, no network, and the tokenizer and model folder that several files need."""

import os

# read when torch and transformers are imported; the scripts that tests start inherit them
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    """The embedded policy's tokenizer. Tests must not change it."""
    import imitate

    return imitate.build_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tokenizer, tmp_path_factory):
    """A folder with a small random model, as save_pretrained leaves it. Tests must not change it."""
    import imitate

    folder = tmp_path_factory.mktemp("models") / "small"
    torch.manual_seed(0)
    imitate.build_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
