"""The Megatron-Core policy: model, tree attention, selected-row head, scoring, updating, checkpoints."""
