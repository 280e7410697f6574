"""The handlers: ``sys_<call>(kernel, call, target, request)``, no state, a few lines each."""
