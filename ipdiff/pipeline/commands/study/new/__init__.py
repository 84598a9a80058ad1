"""`ipdiff new`: from a folder of pictures to a study that fits a time budget.

Looking at the pictures is `ipdiff.data.readers.survey`; here are the networks to choose from (`presets`), what
distances are taken on (`features`), this machine's speed (`speeds`), what fits the budget (`fit`), the text of the
study's params.yaml (`text`), and what joins them (`create`).
"""
