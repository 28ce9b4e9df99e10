"""Networks that find the objects of a picture and their colours."""
