"""The command line and the configuration, checked before anything heavy is imported.

`words` prepares the words of the command line for Hydra, `groups` says which values every option allows, `checking`
checks a composed configuration, and `messages` explains what Hydra refuses. To be quick, nothing here imports another
part of drift than `drift.errors`.
"""
