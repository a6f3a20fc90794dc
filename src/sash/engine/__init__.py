"""From requests to tokens: a scheduler that knows no torch, a runner that samples, the engine over both."""
