"""Students that earlier versions of rpp wrote, and the script that writes them."""
