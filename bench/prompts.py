"""What every bench asks for: fixed prompts, so that runs and peers do the same work."""

_HEROES = ("dragon", "cat", "robot", "little girl", "bear", "frog", "bird", "boy")
_THINGS = ("kite", "red ball", "boat", "big tree")

PROMPTS = tuple(
    f"Tell me a story about a {hero} and a {thing}." for thing in _THINGS for hero in _HEROES
)
MAX_TOKENS = 160  # about the length of a story; every answer is cut or padded to it (ignore_eos)
SEED = 20_261_122
