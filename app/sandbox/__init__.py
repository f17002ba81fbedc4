"""The emulators of Airtable and Apify, and the demo that runs against them."""
