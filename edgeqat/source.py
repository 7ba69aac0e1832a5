"""Where a float model comes from, found without torch or transformers, whose import takes seconds:
`demo`, an alias, a local folder, a GGUF file, or an id of the Hugging Face hub.
"""

from __future__ import annotations

from pathlib import Path

from edgeqat import gguf_header
from edgeqat.aliases import ALIASES, DEMO
from edgeqat.checkpoint import CONFIG
from edgeqat.errors import ModelError, nearest


def locate(name: str) -> str:
    """The folder or hub id behind a model name. Raises ModelError for a path that is no folder."""
    if name == DEMO:
        from edgeqat.demo import model

        return str(model.folder())
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / CONFIG).is_file():
            files = sorted(path.glob(f"*{gguf_header.SUFFIX}"))
            way = f"name its file {files[0].name}" if files else "name a Hugging Face model folder"
            raise ModelError(f"model: '{path}' holds no config.json; {way}")
        return str(path)
    if path.exists() or name.startswith((".", "/", "~")):
        raise ModelError(
            f"model: '{name}' is not a folder; name a folder with config.json and weights, or a "
            "GGUF file"
        )
    return ALIASES.get(name, name)


def check(name: str) -> None:
    """Refuse a model that is neither here nor in the hub's cache nor on the hub, and a GGUF file
    that cannot be read. What the hub says otherwise (a gated model, a server that fails) is found
    again, and explained, when it is loaded.
    """
    if gguf_header.is_gguf(name):
        gguf_header.check(name)
        return
    place = locate(name)
    if Path(place).is_dir():
        return
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        if try_to_load_from_cache(place, CONFIG) is None:
            get_hf_file_metadata(hf_hub_url(place, CONFIG))
    except GatedRepoError:
        return
    except RepositoryNotFoundError:
        raise ModelError(not_on_hub(name, place)) from None
    except HfHubHTTPError:
        return
    except Exception as error:  # no connection, or no name that the hub can have
        raise ModelError(unreachable(name, place)) from error


def not_on_hub(name: str, place: str, noun: str = "model") -> str:
    """The message for a name that the hub does not know."""
    shown = _shown(name, place)
    return f"{noun}: {shown} is not on the hub, or private; check the name{_similar(name)}"


def unreachable(name: str, place: str, noun: str = "model") -> str:
    """The message for a model that is not local while the hub cannot be asked."""
    return (
        f"{noun}: {_shown(name, place)} is no local folder, is not in the hub cache and the hub "
        "cannot be reached; download it elsewhere and give its folder to --model, or set HF_HOME "
        f"to a cache that holds it{_similar(name)}"
    )


def _shown(name: str, place: str) -> str:
    return f"'{name}'" if place == name else f"'{name}' ({place})"


def _similar(name: str) -> str:
    hint = nearest(name, [DEMO, *ALIASES])
    return f"; {hint}" if name not in ALIASES and hint.startswith("did") else ""
