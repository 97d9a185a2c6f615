"""Who wins? Attackers against defenders: every cell measured, the worst case image by image, and the value of the game.

    attackers = {"FGSM": knows(fgsm), "PGD": knows(pgd, steps=40), "transfer": elsewhere(source, mi_fgsm)}
    defenders = {"plain": f, "median": Squeezed(f, "median", 3), "trained": g, "refuses": detector}
    played = play(attackers, defenders, x, y, eps=8 / 255)
    played.table()                played.worst()                played.game()

    sides     who plays: a defender is any network, or a fitted detector; an attack is a method and what it is shown
    table     `play` measures all pairs, and `Played` reads them
    value     what the game is worth when both sides mix: a linear programme
"""
from kit.defend.game.sides import Attack, Defender, averaged, elsewhere, first_of, knows, past, unaware, undetected
from kit.defend.game.table import NOBODY, Played, play
from kit.defend.game.value import Game, Solution, informed, solve

__all__ = [
    "NOBODY", "Attack", "Defender", "Game", "Played", "Solution", "averaged", "elsewhere", "first_of", "informed",
    "knows", "past", "play", "solve", "unaware", "undetected",
]
