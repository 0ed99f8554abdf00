"""What the gateway answers, as an OpenAPI document; tests hold it to the router and to the running gateway."""
