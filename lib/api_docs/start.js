"use strict";
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  defaultModelsExpandDepth: -1,
  showExtensions: true,
  // The check of the description at swagger.io would send it there.
  validatorUrl: null,
});
