"""The page of `demo.py`: sessions without a browser, and a Gradio application on top of them."""
