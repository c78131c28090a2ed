"""Pure: sync rules and sync streams: parser, compiler, plan, evaluator."""
