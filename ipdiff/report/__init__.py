"""Tables, figures and the HTML report; reads metrics and sample sets only and never imports torch."""
