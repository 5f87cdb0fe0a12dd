"""The data model: every key, checks of input, building blocks of sections; verbs of users stand in the rooms above."""
