"""The Gradio page of the workbench: widgets, presenters, handlers and layout."""
