"""Cores behind OpenAI's chat completions: model servers of one's own, and cloud APIs.

``core`` (its settings, one stream), ``wire`` (what is sent, what comes back), ``dialects`` (what
each server takes), ``discovery`` (which server it is, what it has), ``failures`` (its refusals in
our words), ``plain`` (tools for templates that know none).
"""
