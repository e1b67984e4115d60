"""How models write reasoning and tool calls: formats as tables, and a parser that runs them."""
