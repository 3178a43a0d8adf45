// A file of its own: the policy of the page lets no script in that stands in it.
window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null, // it would send the schema elsewhere
});
