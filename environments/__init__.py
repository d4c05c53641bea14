"""The environments, each in a folder or a file of its own that envs.py finds by its name.

    task.py      what every environment implements
    player.py    what every scripted player is made of
    tables.py    the scripted players of the tiny levels of alchemy and terminal
    finding.py   from a name or a path to the class
    NAME/        an environment: `task.py` with its one subclass of `Task`, `players.py` with its scripted players in
                 PLAYERS, and its parts
    NAME.py      the same in one file

To add one, add such a folder or file; nothing else is to be edited. What an environment says is what a model reads: a
changed word changes the results, and breaks the embedded policy where it is about FrozenLake.
"""
