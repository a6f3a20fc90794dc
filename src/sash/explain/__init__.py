"""What a model can still see, and what that costs: data first, drawings as text second. Needs no torch.

`mask` draws who sees whom in one layer, `reach` what the last token can know of through the layers, `rolling` where
keys and values lie in the rolling buffer, `budget` what memory and arithmetic a window saves.
"""
