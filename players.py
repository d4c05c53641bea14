"""The scripted players that give every evaluation its reference lines.

    random    well-formed actions, drawn uniformly
    informed  knows the hidden thing and plays with it as well as can be
    learner   knows nothing at first, finds out within the pack, and carries what it knows in its hints

Random players and learners have nothing but the text that a model has, and read it with regular expressions.
"""

from environments.alchemy_players import AlchemyInformed, AlchemyLearner, AlchemyRandom
from environments.control_players import ControlInformed, ControlLearner, ControlRandom
from environments.frozenlake_players import LakeInformed, LakeLearner, LakeRandom
from environments.gridnav_players import GridInformed, GridLearner, GridRandom
from environments.player import Player
from environments.terminal_players import TerminalInformed, TerminalLearner, TerminalRandom

PLAYERS: dict[str, dict[str, type[Player]]] = {  # environment -> name -> player
    "frozenlake": {"random": LakeRandom, "informed": LakeInformed, "learner": LakeLearner},
    "alchemy": {"random": AlchemyRandom, "informed": AlchemyInformed, "learner": AlchemyLearner},
    "gridnav": {"random": GridRandom, "informed": GridInformed, "learner": GridLearner},
    "control": {"random": ControlRandom, "informed": ControlInformed, "learner": ControlLearner},
    "terminal": {"random": TerminalRandom, "informed": TerminalInformed, "learner": TerminalLearner},
}
